"""A node that is cut off from the network while a submitted job trains, and comes back: the result has to be the same.

    sudo python -m benchmarks.cut_nodes --seconds 10 120

Three machines as in `benchmarks.serve_nodes`; the job is submitted to the head, its two workers and the actors that
compute features are on all of them. In each stage the link of a machine that is not the head goes down for so many
seconds: Ray takes a node for dead after half a minute of silence. Split, ledger and metrics have to be those of an
undisturbed run. Linux, as root.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.kill_resume import NAME
from benchmarks.lost_nodes import OPTIONS, compared, last_line, stages, trained
from benchmarks.serve_nodes import DASHBOARD, cluster, run
from benchmarks.train_speed import ROOT
from tests.cluster.machines import Machine, machines
from tests.e2e.conftest import TINY_PATH, draw
from tests.e2e.head import RAY

PATIENCE_S = 400


def cut(machine: Machine, seconds: float) -> None:
    """Nothing reaches a machine, or leaves it, for so long."""
    run("ip", "link", "set", machine.link, "down")
    time.sleep(seconds)
    run("ip", "link", "set", machine.link, "up")


def submitted(head: Machine, env: dict[str, str], photos: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A training, submitted to the head; its lines are in `folder`/log."""
    job = [sys.executable, "-m", "jobs.train", "--data", str(photos), "--storage", str(folder)]
    job += ["--name", NAME, *OPTIONS.split(), "--feature-actors", "2"]
    words = [str(RAY), "job", "submit", "--address", f"http://{head.host}:{DASHBOARD}", "--", *job]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def trial(made: list[Machine], env: dict[str, str], photos: Path, folder: Path, stage: str, seconds: float) -> str:
    """Cuts a machine off when a training has come so far, and says how that ended."""
    folder.mkdir()
    reached = stages("train", folder)[stage] if stage else None
    process = submitted(made[0], env, photos, folder)
    while reached and not reached() and process.poll() is None:
        time.sleep(0.02)
    if reached:
        time.sleep(random.uniform(0, 1))
        threading.Thread(target=cut, args=(random.choice(made[1:]), seconds), daemon=True).start()
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"not done after {PATIENCE_S} s: {last_line(folder / 'log')}"
    return "" if code == 0 else f"exit code {code}: {last_line(folder / 'log')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 120], help="how long, each once a stage")
    parser.add_argument("--stages", nargs="+", default=["features", "training"])
    parser.add_argument("--photos", type=int, default=800, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of machines and moments")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("network namespaces need root")
    random.seed(options.seed)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), TINY_PATH])
    same = trials = 0
    with tempfile.TemporaryDirectory(prefix="cut-") as name, machines(3) as made:
        scratch = Path(name)
        photos = draw(scratch / "photos", classes=4, each=options.photos // 4)
        reference = scratch / "reference"
        for stage, seconds in [("", 0.0), *((stage, length) for stage in options.stages for length in options.seconds)]:
            folder = scratch / str(trials) if stage else reference
            began = time.monotonic()
            # A cluster for each: a node that was taken for dead does not join again by itself.
            own = scratch / f"cluster-{trials}-{bool(stage)}"
            own.mkdir()
            with cluster(made, own) as env:
                outcome = trial(made, env, photos, folder, stage, seconds)
                for machine in made:
                    run("ip", "link", "set", machine.link, "up")
            if not stage:
                if outcome:
                    sys.exit(f"the undisturbed run failed: {outcome}\n{(folder / 'log').read_text()[-3000:]}")
                wanted = trained(folder)
                print(f"     undisturbed: {time.monotonic() - began:.0f} s with the start of the nodes", flush=True)
                continue
            trials += 1
            if not outcome:
                outcome = compared(trained(folder), wanted)
            print(f"{trials:3d}  {stage:8} {seconds:4.0f} s  {time.monotonic() - began:5.0f} s  {outcome}", flush=True)
            same += outcome == "same"
    print(f"{same} of {trials} ended by themselves with the same result")
    return int(same < trials)


if __name__ == "__main__":
    sys.exit(main())
