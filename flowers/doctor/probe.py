"""The probe: what one machine says of itself, in a process like those that will work there."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flowers
from flowers import storage
from flowers.cluster.nodes import look, take_probe, write_probe
from flowers.cluster.session import node
from flowers.doctor.report import CODE, Disk
from flowers.errors import FlowersError, first_line

# What this project needs, by the names that packages are installed by; a test compares it with pyproject.toml.
PACKAGES = (
    *("ray", "tensorflow", "keras", "openvino", "pyarrow", "numpy", "pillow", "pillow-heif", "requests", "click"),
    *("rich", "pydantic", "jinja2", "matplotlib", "tensorboardX", "pyyaml", "prometheus-client"),
    *("python-multipart", "fastapi-offline", "cleanlab", "scikit-learn", "threadpoolctl"),
)
# Of one package only the first is installed.
_SAME = {"tensorflow": ("tensorflow", "tensorflow-cpu")}
_SHARED_MEMORY = "/dev/shm"
_CONNECT_S, _AT_ONCE = 5.0, 32


class Probe:
    """Answers from one machine; a Ray actor, so that its port stays open while others try to reach it."""

    def report(self, probe: str, folder: str, files: str) -> dict[str, Any]:
        """A `Report` without GPUs, as JSON has it.

        Args:
            probe: file to write into the storage.
            folder: the storage.
            files: of the photos, and their sizes elsewhere: see `flowers.cluster.nodes.look`.
        """
        return {
            "versions": versions(),
            "disks": [vars(disk) for disk in _disks(folder)],
            "shared_memory": shutil.disk_usage(_SHARED_MEMORY).total if os.path.isdir(_SHARED_MEMORY) else None,
            "storage": _written(probe),
            "data": look(files),
        }

    def gpus(self, program: str, limit_s: float) -> tuple[list[str], str]:
        """GPUs as TensorFlow sees them, or why it cannot say: in a process of its own, which may crash or hang.

        Args:
            program: Python that prints their names as JSON.
            limit_s: seconds that it may take.
        """
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if not environment.get("CUDA_VISIBLE_DEVICES"):  # Ray hides them from a task that reserves none
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        try:
            done = subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=limit_s
            )
            if done.returncode == 0:
                return list(json.loads(done.stdout.splitlines()[-1])), ""
        except subprocess.TimeoutExpired:
            return [], f"no answer within {limit_s:g} s"
        except (OSError, ValueError, IndexError) as error:
            return [], first_line(error)
        said = done.stderr.strip().splitlines()
        return [], said[-1] if said else f"it ended with {done.returncode}"

    def clock(self) -> float:
        """Seconds since 1970 by the clock of this machine."""
        return time.time()

    def remove(self, probe: str) -> None:
        """Removes a probe file that the others do not see."""
        take_probe(probe)

    def listen(self) -> int:
        """Opens a port that the system chooses, as workers do for TensorFlow; it is open while this actor lives."""
        self._socket = socket.create_server(("", 0), backlog=1024)
        return int(self._socket.getsockname()[1])

    def reach(self, places: Sequence[tuple[str, int]]) -> list[str]:
        """Connects to each host and port; why it could not, or ""."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(_reach, places))


def versions() -> dict[str, str]:
    """Of Python, of `PACKAGES` as they are installed for it, and of this library: a digest of its source files."""
    found = {"Python": platform.python_version(), CODE: _code_digest()}
    for name in PACKAGES:
        for one in _SAME.get(name, (name,)):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.setdefault(name, importlib.metadata.version(one))
    return found


def _code_digest() -> str:
    folder = Path(flowers.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _written(probe: str) -> str:
    """What went wrong with the probe file, in words that are the same on every node."""
    try:
        text = write_probe(probe)
    except FlowersError as error:  # a full disk
        text = str(error).partition(";")[0]
    return text.replace(f"/{storage.name(probe)}", "")


def _disks(folder: str) -> list[Disk]:
    """The file systems that a run writes to, each once."""
    folders = {"temporary files of Ray": node().get_temp_dir_path()}
    if not storage.is_remote(folder):
        folders["--storage"] = folder
    folders["temporary files"] = tempfile.gettempdir()
    disks: dict[int, Disk] = {}
    for what, path in folders.items():
        there = _existing(path)
        size = shutil.disk_usage(there)
        disks.setdefault(os.stat(there).st_dev, Disk(what, there, size.free, size.total))
    return list(disks.values())


def _existing(path: str) -> str:
    """The folder, or the lowest one above it that is there."""
    there = Path(path)
    return str(next(one for one in (there, *there.parents) if one.is_dir()))


def _reach(place: tuple[str, int]) -> str:
    try:
        socket.create_connection(place, timeout=_CONNECT_S).close()
    except OSError as error:
        return getattr(error, "strerror", None) or str(error)
    return ""
