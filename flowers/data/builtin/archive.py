"""Archives of photos: unpacked safely, whole or not at all, with a note beside each file of what is known of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from flowers.errors import DownloadError

_NOTES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_MOST_NOTE_BYTES = 1 << 20
OWN = "use --data with a folder of your own"


@dataclass(frozen=True)
class Archive:
    """A file on the network; `size` is in bytes; what is not known beforehand is None."""

    url: str
    size: int | None
    sha256: str | None
    kind: Literal["tgz", "tar", "zip"]


@dataclass(frozen=True)
class Limits:
    """How patient and how trusting a fetch is; times in seconds, sizes in bytes."""

    stall: float = 30.0  # without an answer or a byte
    tries: int = 5  # in a row without a new byte
    backoff: float = 1.0  # before the second try; doubles with each further one
    longest_wait: float = 60.0  # also the most that Retry-After may ask for
    archive_bytes: int = 2 << 30  # where the size is not known
    unpacked_bytes: int = 4 << 30
    files: int = 100_000


class UnsoundArchive(DownloadError):
    """An archive is damaged, or is none."""


def unpack(path: Path, archive: Archive, target: Path, limits: Limits, folders: bool = True) -> str:
    """Unpacks to a temporary folder, renames it to `target`; returns the one folder in it, "." if several.

    Args:
        path: of the archive.
        archive: its kind.
        target: where what it holds goes, replacing what is there.
        limits: what is unpacked at most.
        folders: refuse an archive without folders.

    Raises:
        UnsoundArchive: it is damaged.
        DownloadError: it is not safe, or too large.
    """
    work, left = Path(f"{target}.partial"), limits.unpacked_bytes
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
    try:
        work.mkdir()
        for count, (name, size, content) in enumerate(_zip(path) if archive.kind == "zip" else _tar(path)):
            parts, left = [part for part in name.split("/") if part not in ("", ".")], left - size
            if name.startswith("/") or ".." in parts or re.search(r"\\|\0|^[A-Za-z]:", name):
                raise _unsafe(path, f"{name!r} lies outside its folder")
            if count >= limits.files or left < 0:
                raise _unsafe(path, f"more than {limits.files} files or {limits.unpacked_bytes} bytes")
            if content is None or any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            place = work.joinpath(*parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with content, open(place, "xb") as file:
                while block := content.read(min(1 << 20, size + 1)):
                    size -= len(block)
                    if size < 0:  # only the stated size was counted
                        raise _unsafe(path, f"{name!r} is larger than stated")
                    file.write(block)
        tops = [entry.name for entry in work.iterdir() if entry.is_dir()]
        if not tops and folders:
            raise _unsafe(path, "no folders of photos")
        beside(target).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(work, target)
        return tops[0] if len(tops) == 1 else "."
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UnsoundArchive(f"{path} is not a sound {archive.kind} ({error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unsafe(path: Path, what: str) -> DownloadError:
    return DownloadError(f"{path} is refused, nothing of it is used: it holds {what}; {OWN}")


def _tar(path: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """The members' names, sizes in bytes, and contents (None for a folder)."""
    with tarfile.open(path, "r:*", tarinfo=_Member) as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()):
                raise _unsafe(path, f"{member.name!r}, a link or a device")
            try:
                tarfile.data_filter(member, str(path.parent))
            except tarfile.FilterError as error:
                raise _unsafe(path, str(error)) from error
            yield member.name, member.size, tar.extractfile(member) if member.isreg() else None


class _Member(tarfile.TarInfo):
    """A member whose names and notes, which are read as a whole, are no longer than names and notes are."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _NOTES and not 0 <= self.size <= _MOST_NOTE_BYTES:
            raise _unsafe(Path(os.fsdecode(tar.name or "")), f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def _zip(path: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(path, f"{member.orig_filename!r}, a link or a device")
            yield member.orig_filename, member.file_size, None if member.is_dir() else archive.open(member)


def beside(path: Path) -> Path:
    """The note that belongs to a file."""
    return Path(f"{path}.json")


def read_note(path: Path) -> dict[str, Any]:
    """What `write_note` noted beside `path`; empty if nothing readable is there."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(beside(path).read_text("utf-8")))
    return {}


def write_note(path: Path, note: dict[str, Any]) -> None:
    """Puts a note beside `path`, whole or not at all."""
    temporary = Path(f"{path}.json.new")
    temporary.write_text(json.dumps(note), "utf-8")
    os.replace(temporary, beside(path))
