"""Files of the feature cache whose bytes are counted as they are read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa


class Counted(io.FileIO):
    """One of them."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self.count += len(data)
        return data


def counting(files: list[Counted]) -> Callable[..., pa.NativeFile]:
    """What stands in for `FeatureCache._file`: it notes in `files` what is opened."""

    def opened(cache: Any, filesystem: Any, path: str) -> pa.NativeFile:
        files.append(Counted(path))
        return pa.PythonFile(files[-1], "r")

    return opened
