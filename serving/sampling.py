"""Samples: some of the photos that people ask about, kept beside what was answered, for somebody to label.

A folder of files named by their content, and `samples.jsonl`: a manifest that training reads once labels are filled in.
Off unless asked for, bounded, and said on the page.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from flowers.data.images import sniff
from flowers.errors import InputError
from flowers.predictor import Prediction
from flowers.runs import now

MANIFEST = "samples.jsonl"
# Photos that wait to be written, at most: a slow disk delays no answer.
_MOST_WAITING = 32
_EXTENSIONS = {"jpeg": "jpg", "jpeg2000": "jp2", "tiff": "tif"}


class Sampler:
    """Keeps photos.

    Args:
        folder: a local folder, for this account only; made if it is missing.
        rate: share of photos to keep, 0 to 1.
        max_bytes: of all files in the folder; then no more are kept.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str, rate: float, max_bytes: int) -> None:
        self._folder, self._rate = Path(folder), rate
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / MANIFEST).touch(mode=0o600)
            self._left = max_bytes - sum(entry.stat().st_size for entry in os.scandir(self._folder))
        except OSError as error:
            raise InputError(f"--sample-to: {folder} cannot be written: {error.strerror or error}") from error
        self._waiting = threading.Semaphore(_MOST_WAITING)
        self._thread = ThreadPoolExecutor(1, "keep samples")

    def offer(self, photo: bytes, answer: Prediction, version: int) -> None:
        """Keeps a photo, or does not; never waits and never fails."""
        if random.random() < self._rate and self._left > len(photo) and self._waiting.acquire(blocking=False):
            self._thread.submit(self._keep, photo, answer, version)

    def _keep(self, photo: bytes, answer: Prediction, version: int) -> None:
        try:
            with suppress(OSError):  # a full disk, say: then there is no sample
                self._write(photo, answer, version)
        finally:
            self._waiting.release()

    def _write(self, photo: bytes, answer: Prediction, version: int) -> None:
        kind = sniff(photo) or "bin"
        path = self._folder / f"{hashlib.sha256(photo).hexdigest()}.{_EXTENSIONS.get(kind, kind)}"
        row = {
            "path": path.name,
            "label": None,
            "predicted": answer.label,
            "score": round(answer.score, 6),
            "version": version,
            "at": now(),
        }
        line = (json.dumps(row) + "\n").encode()
        if self._left < len(photo) + len(line):
            return
        try:
            with open(path, "xb") as file:
                file.write(photo)
        except FileExistsError:  # known already
            return
        with open(self._folder / MANIFEST, "ab", buffering=0) as manifest:  # one write: replicas share the file
            manifest.write(line)
        self._left -= len(photo) + len(line)
