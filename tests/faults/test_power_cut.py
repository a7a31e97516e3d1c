"""The power goes while a run is written: what was reported is on the disk, and the same command ends as if it had not.

The runs lie on a file system of their own in a file. A copy of that file, made while nothing is written to it, holds
what had reached the disk by then and nothing of what the kernel still had in memory.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowers import storage
from tests.e2e.conftest import Done
from tests.faults.conftest import EPOCHS, Place, Progress, result

MOMENTS = 3
_BYTES = 192 << 20


def system(*words: object) -> str:
    return subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mounts a file system; yields what the kernel counts of its device."""
    device = system("losetup", "--find", "--show", image)
    try:
        # Nothing is written back before it is asked for: a file that is not synced is lost for sure.
        system("mount", "-o", "commit=600", device, folder)
        try:
            yield Path("/sys/block", Path(device).name, "stat")
        finally:
            system("umount", "--lazy", folder)  # the network that was compiled is still mapped
    finally:
        system("losetup", "--detach", device)


@dataclass(frozen=True)
class Moment:
    """The disk as it was when the power went.

    Attributes:
        image: copy of the file system.
        epochs: that had been reported before.
    """

    image: Path
    epochs: int


def copied(image: Path, target: Path, counts: Path) -> bool:
    """Copies an image; False if something was written meanwhile, which makes it one of no moment."""

    def written() -> list[str]:
        return counts.read_text().split()[4:]

    before = written()
    system("cp", "--sparse=always", image, target)
    return before == written() and before[4] == "0"


@contextmanager
def cuts(image: Path, counts: Path, run: Path, random: random.Random) -> Iterator[list[Moment]]:
    """Takes the state of the disk at random moments, and keeps `MOMENTS` of them, each as likely."""
    kept: list[Moment] = []
    done = threading.Event()

    def take() -> None:
        seen = 0
        while not done.wait(random.uniform(0, 0.3)):
            if not run.exists():
                continue
            epochs = len(Progress(run).lines())
            target = image.parent / f"{seen}.img"
            if not copied(image, target, counts):
                target.unlink(missing_ok=True)
                continue
            seen += 1
            moment = Moment(target, epochs)
            if len(kept) < MOMENTS:
                kept.append(moment)
            elif (place := random.randrange(seen)) < MOMENTS:
                kept[place].image.unlink()
                kept[place] = moment
            else:
                target.unlink()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        done.set()
        thread.join()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty file system in a file."""
    found = tmp_path / "image" / "disk.img"
    found.parent.mkdir()
    with found.open("wb") as file:
        file.truncate(_BYTES)
    try:
        system("mkfs.ext4", "-q", "-J", "size=4", found)
        (tmp_path / "try").mkdir()
        with mounted(found, tmp_path / "try"):
            pass
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system can be mounted here")
    return found


def test_the_same_command_goes_on(place: Place, reference: Done, image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "runs"
    disk.mkdir()
    words = place.arguments()
    with mounted(image, disk) as counts, cuts(image, counts, disk / "cut", random.Random(os.urandom(8))) as moments:
        assert result(place.job(disk, "cut", *words)) == result(reference)
    assert len(moments) == MOMENTS, "the disk was never at rest"
    for moment in moments:
        with mounted(moment.image, disk):
            done = Progress(disk / "cut").checkpoint()
            assert done >= moment.epochs, "what was reported is not on the disk"
            again = place.job(disk, "cut", *words)
            assert result(again) == result(reference)
            assert "damaged" not in again.out + again.err
            assert not [file for file in (disk / "cut").rglob("*") if storage.is_left_over(file.name)]
            print(f"the power went after {moment.epochs} of {EPOCHS} epochs, {done} were on the disk")
