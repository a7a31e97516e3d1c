"""Attempts to load a version, noted on the disk: one that ended its process is not made again and again.

A network that needs more memory than there is takes the whole replica with it, and the next one would start with it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Who has mended what it died of, or only stopped the server meanwhile, does not want to be told of it later.
_REMEMBERED_S = 3600


class Attempts:
    """Notes that the replicas of one server on a machine share.

    Args:
        folder: where they lie; made if it is missing.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def noted(self, version: str) -> Iterator[None]:
        """Notes meanwhile that this process loads a version; the note stays if the process ends."""
        note = self._folder / f"loading-{_key(version)}-{os.getpid()}"
        note.touch()
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    def ended_a_process(self, version: str) -> bool:
        """Whether a process has ended while it loaded this version."""
        for note in self._folder.glob(f"loading-{_key(version)}-*"):
            alive = os.path.exists(f"/proc/{note.name.rpartition('-')[2]}")
            if not alive and time.time() - note.stat().st_mtime < _REMEMBERED_S:
                return True
        return False


def _key(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()[:16]
