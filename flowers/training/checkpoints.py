"""Checkpoints: what changed in training, committed whole, verified when read.

A checkpoint is a folder `epoch-0007` with `state.npz` (arrays), `state.json` and, put last, `manifest.json` with
their hashes. Ray is handed the finished folder; whether it knows of it does not matter for going on.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers import storage
from flowers.errors import DamagedFile

ARRAYS, STATE, MANIFEST = "state.npz", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after `epoch` epochs.

    Attributes:
        epoch: epochs done.
        arrays: variables of the trained part and of the optimizer, by name.
        state: JSON-ready rest: best epoch, history, early stopping.
    """

    epoch: int
    arrays: dict[str, npt.NDArray[Any]]
    state: dict[str, Any]


def save(folder: str, checkpoint: Checkpoint) -> str:
    """Commits a checkpoint below `folder` and returns its URI.

    Raises:
        FlowersError: the disk is full; the earlier checkpoints are whole.
    """
    uri = uri_of(folder, checkpoint.epoch)
    with storage.enough_space(f"the checkpoint of epoch {checkpoint.epoch} in {folder}"):
        scratch = storage.working_folder(uri)
        try:
            with open(f"{scratch}/{ARRAYS}", "wb") as file:
                np.savez(file, **checkpoint.arrays)  # type: ignore[arg-type]
            state = {"epoch": checkpoint.epoch, "state": checkpoint.state}
            storage.write(f"{scratch}/{STATE}", json.dumps(state).encode())
            hashes = {name: storage.file_sha256(f"{scratch}/{name}") for name in (ARRAYS, STATE)}
            storage.write(f"{scratch}/{MANIFEST}", json.dumps(hashes).encode())
            storage.publish(scratch, uri, last=MANIFEST)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return uri


def load(uri: str) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        DamagedFile: a file is missing or does not match its hash.
    """
    try:
        manifest = json.loads(storage.read(storage.join(uri, MANIFEST)))
        files = {name: storage.read(storage.join(uri, name)) for name in (ARRAYS, STATE)}
        for name, data in files.items():
            if storage.sha256(data) != manifest[name]:
                raise DamagedFile(f"{uri}/{name} does not match its hash")
        with np.load(io.BytesIO(files[ARRAYS]), allow_pickle=False) as arrays:
            return Checkpoint(arrays=dict(arrays), **json.loads(files[STATE]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{uri} is incomplete: {error}") from error


def newest(folder: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint below `folder` whose best epoch is there too, and a line for each skipped one."""
    skipped: list[str] = []
    for name in reversed(_names(folder)):
        try:
            found = load(storage.join(folder, name))
            if found.state["best"] != found.epoch:
                load(uri_of(folder, found.state["best"]))
            return found, skipped
        except DamagedFile as error:
            skipped.append(f"skipped a checkpoint that cannot be used: {error}")
    return None, skipped


def uri_of(folder: str, epoch: int) -> str:
    """URI of the checkpoint of an epoch below `folder`."""
    return storage.join(folder, _name(epoch))


def prune(folder: str, keep: set[int]) -> None:
    """Removes all checkpoints but those of the epochs in `keep`."""
    for name in set(_names(folder)) - {_name(epoch) for epoch in keep}:
        storage.delete(storage.join(folder, name))


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def _names(folder: str) -> list[str]:
    found = [name for name in storage.names(folder) if name.startswith("epoch-") and name[6:].isdecimal()]
    return sorted(found, key=lambda name: int(name[6:]))
