"""Two real nodes of Ray, on this machine: what is asked of each of them, and what the doctor finds when one is ill."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from rich.console import Console

from flowers.bundle import load_bundle
from flowers.cluster import nodes
from flowers.cluster.nodes import check_storage, cluster_nodes
from flowers.cluster.placement import Placement, Pool, place
from flowers.config import DoctorOptions
from flowers.data.listing import list_files
from flowers.doctor import survey
from flowers.doctor.checks import State
from flowers.errors import InputError
from flowers.pipelines.doctor import doctor
from flowers.prediction.scorer import Machine, Scorer
from tests.cluster.clusters import STORE_BYTES, own_cluster
from tests.e2e.conftest import draw
from tests.toys import saved_by_colour

OTHER = "0.0.1"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A Ray cluster whose second node has another Pillow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with own_cluster(2) as (cluster, scratch):
            other = scratch / "packages" / f"pillow-{OTHER}.dist-info"
            other.mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: pillow\nVersion: {OTHER}\n"
            (other / "METADATA").write_text(text, encoding="utf-8")
            second = cluster.add_node(
                num_cpus=1,
                object_store_memory=STORE_BYTES,
                node_name="second",
                env_vars={"PYTHONPATH": str(other.parent)},
            )
            yield cluster, second


def test_what_each_node_offers_and_writes(two_nodes: Any, tmp_path: Path) -> None:
    assert sorted(node.cpus for node in cluster_nodes()) == [1, 2]
    assert place("auto", None, None, 32, cluster_nodes()) == Placement(2, 1, 0)
    check_storage(str(tmp_path / "runs"))
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Not a directory \(node \S+, \S+\); required is one place"):
        check_storage(str(tmp_path / "file" / "runs"))


def test_a_node_that_has_gone_is_no_reason_to_refuse_the_storage(two_nodes: Any, tmp_path: Path) -> None:
    here = ray.get_runtime_context().get_node_id()
    probes = {node: str(tmp_path / node) for node in (here, "a" * 56)}
    assert nodes._on_nodes(nodes.write_probe, probes) == {here: ""}


def test_bulk_prediction_asks_all_nodes_for_photos_and_bundle(
    two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(nodes, "check_files", lambda option, uris: asked.append((option, list(uris))))
    bundle = saved_by_colour(tmp_path / "bundle", ["red", "green", "blue"])
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    listing = list_files(str(tmp_path / "a.jpg"), datasets=str(tmp_path), labelled=False).table
    scorer = Scorer(load_bundle(str(bundle)), Machine.of(cluster_nodes()), 10**8)
    rows = pa.concat_tables(scorer.tables(listing))
    assert rows["code"].to_pylist() != [None]
    assert asked == [("--data", listing["path"].to_pylist()), ("--bundle", [f"{bundle}/manifest.json"])]


def looked(**options: Any) -> dict[str, list[str]]:
    """What the doctor finds wrong, by check; its lines say the same."""
    out = io.StringIO()
    findings = doctor(DoctorOptions(**options), Console(file=out, soft_wrap=True))
    lines = out.getvalue().splitlines()
    assert len(lines) == len(findings)
    found: dict[str, list[str]] = {}
    for line, finding in zip(lines, findings, strict=True):
        assert line.startswith(f"{finding.state.value:<8}{finding.check}")
        assert finding.text in line
        if finding.state is State.WRONG:
            found.setdefault(finding.check, []).append(finding.text)
    return found


def test_the_doctor_finds_each_fault_of_a_node(two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_SEEN_BY_TENSORFLOW", "raise OSError('no driver')")
    (tmp_path / "file").touch()
    storage, out = str(tmp_path / "file" / "runs"), tmp_path / "found.json"
    found = looked(storage=storage, data="sample", free_gb=1e6, nodes=3, workers="4", out=str(out))
    assert list(found) == ["data", "nodes", "versions", "storage", "disk", "object store", "GPUs", "workers"]
    (version,) = found["versions"]
    assert version.startswith(f"pillow is {OTHER} on ")
    assert found["data"] == [
        "--data: sample cannot be read or unpacked: Not a directory; what --storage says below may be the reason"
    ]
    (written,) = found["storage"]
    assert written.startswith(f"{storage}: Not a directory (")
    assert "wanted are 1000000.0 GB (--free-gb); make room" in found["disk"][0]
    assert all(text.endswith("TensorFlow did not start there: OSError: no driver") for text in found["GPUs"])
    assert found["nodes"] == ["2 of the 3 nodes that --nodes asks for are there; start the others"]
    assert '"check": "versions"' in out.read_text(encoding="utf-8")


def test_the_doctor_finds_a_node_that_died(two_nodes: Any, tmp_path: Path) -> None:
    cluster, second = two_nodes
    cluster.remove_node(second, allow_graceful=False)
    while len(cluster_nodes()) > 1:  # Ray notices
        time.sleep(0.1)
    draw(tmp_path / "photos", classes=2, each=5)
    found = looked(storage=str(tmp_path / "runs"), data=str(tmp_path / "photos"), free_gb=0)
    assert list(found) == ["nodes", "object store"]
    (dead,) = found["nodes"]
    assert " has died (" in dead
    assert "start it again there" in dead
    assert not (tmp_path / "runs").exists(), "it only looks"


def test_each_process_sees_the_gpus_that_it_was_given(two_nodes: Any, tmp_path: Path) -> None:
    """Ray believes in a GPU, which no process looks for: actors share it, and others are shown none."""
    import ray

    cluster, _ = two_nodes
    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 << 20)

    def shown() -> str:
        nodes.keep_to_own_gpus()
        return os.environ.get("CUDA_VISIBLE_DEVICES", "all")

    assert shown() == "all", "a job's own process sees what there is"
    with_gpu, without = (ray.remote(num_gpus=gpus)(shown) for gpus in (0.5, 0))
    assert ray.get([with_gpu.remote(), without.remote()]) == ["0", "-1"]
    bundle = load_bundle(str(saved_by_colour(tmp_path / "bundle", ["red", "green", "blue"])))
    listing = list_files(str(draw(tmp_path / "photos", 2, 4)), datasets=str(tmp_path), labelled=False).table
    for device, pool in (("gpu", Pool(3, 1, 0.3333)), ("cpu", Pool(2, 1))):
        machine = Machine.of(cluster_nodes(), "openvino", "3" if device == "gpu" else "auto", device)
        assert machine.pool == pool
        rows = pa.concat_tables(Scorer(bundle, machine, 10**8).tables(listing))
        assert rows.num_rows == 8
        assert rows["scores"].null_count == 0
