"""Files behind a path or a URI: read whole, write so that nobody ever sees half a file.

A URI stays a `str` (``pathlib`` turns ``s3://x`` into ``s3:/x``) and is opened through `pyarrow.fs`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import string
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from pyarrow import fs as pafs

from flowers.errors import DamagedFile, FlowersError, InputError, first_line

# In the paths of the folders that Ray copies a job's working directory to, on each node.
_WORKING_COPY = "/runtime_resources/working_dir_files/"


class Sink(Protocol):
    """What takes the bytes of a file."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Takes the next bytes."""


def is_remote(uri: str) -> bool:
    """Whether `uri` names a bucket or another remote file system, not a local path."""
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of `uri` and the path inside it; a plain path is made absolute.

    Raises:
        InputError: the scheme is unknown or the address is malformed.
    """
    try:
        if "://" in uri:
            # Blanks and letters like "ü" may be written as they are.
            filesystem, path = pafs.FileSystem.from_uri(quote(uri, safe=string.punctuation))
        else:
            uri.encode()
            filesystem, path = pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    except (ValueError, OSError, ImportError) as error:  # ImportError: hf:// without its package
        raise InputError(
            f"{uri!r} cannot be opened ({first_line(error)}); "
            "give a local path or a URI that pyarrow.fs knows: s3://, gs://, hdfs://, file://"
        ) from error
    return filesystem, path


def absolute(uri: str) -> str:
    """The same place with a local path made absolute, so that it means the same in every process."""
    return uri if is_remote(uri) else resolve(uri)[1]


def in_working_copy(uri: str) -> bool:
    """Whether a path lies in the copy of a folder that Ray makes for `ray job submit --working-dir`, and deletes."""
    return not is_remote(uri) and _WORKING_COPY in os.path.realpath(resolve(uri)[1])


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it; the options of a URI (s3://bucket/runs?region=...) stay at its end."""
    path, options = cut(uri)
    return "/".join([path.rstrip("/"), *parts]) + options


def parent(uri: str) -> str:
    """The folder that `uri` lies in, with the options of `uri`; that of a bare name is "."."""
    path, options = cut(uri)
    folder, _, name = path.rstrip("/").rpartition("/")
    return (folder or ("/" if path.startswith("/") else ".")) + options if name else uri


def name(uri: str) -> str:
    """The last part of `uri`, without options."""
    return cut(uri)[0].rstrip("/").rpartition("/")[2]


def relative(uri: str, folder: str) -> str:
    """What follows `folder` in the path of `uri`, without options; all of the path if it does not lie there."""
    return cut(uri)[0].removeprefix(cut(folder)[0].rstrip("/") + "/")


def inside(uri: str, folder: str) -> bool:
    """Whether `uri` lies below `folder`, by their paths."""
    return cut(uri)[0].startswith(cut(folder)[0].rstrip("/") + "/")


def bucket(uri: str) -> str:
    """Scheme, bucket and options of a URI: what its connection depends on."""
    path, options = cut(uri)
    return "/".join(path.split("/", 3)[:3]) + options


def cut(uri: str) -> tuple[str, str]:
    """The path of a URI, and its options with their question mark; a local path may hold one in a name."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return path, mark + options


def exists(uri: str) -> bool:
    """Whether there is a file or a folder at `uri`."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def names(uri: str) -> list[str]:
    """Sorted names of what lies directly in the folder `uri`; empty when there is no such folder."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


@dataclass(frozen=True)
class Entry:
    """A file or a folder in a folder.

    Attributes:
        name: its last part.
        folder: whether it is a folder.
        size: bytes of a file.
        changed: Unix time in seconds by the clock of its store; None where that does not say.
    """

    name: str
    folder: bool
    size: int
    changed: float | None


def entries(uri: str, *, below: bool = False) -> list[Entry]:
    """What lies directly in the folder `uri`, sorted by name; empty when there is no such folder.

    Args:
        uri: the folder.
        below: also what lies in folders in it.
    """
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=below))
    return sorted((_entry(info) for info in found), key=lambda entry: entry.name)


def entry(uri: str) -> Entry | None:
    """What lies at `uri`."""
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    return None if info.type == pafs.FileType.NotFound else _entry(info)


def _entry(info: pafs.FileInfo) -> Entry:
    nanoseconds = info.mtime_ns  # -1 or None for folders of object stores
    changed = nanoseconds / 1e9 if nanoseconds and nanoseconds > 0 else None
    return Entry(info.base_name, info.type == pafs.FileType.Directory, info.size or 0, changed)


def read(uri: str) -> bytes:
    """The content of one file.

    Raises:
        OSError: it is missing or cannot be read.
    """
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def write(uri: str, data: bytes | memoryview) -> None:
    """Writes one file: complete under its name, or not at all; what was there before stays until then.

    When it returns, the file and its name are on the disk, and survive a power cut.
    """
    with writing(uri) as stream:
        stream.write(data)


@contextmanager
def writing(uri: str) -> Iterator[Sink]:
    """As `write`, for a file that is made piece by piece: it appears when the block is left without an error."""
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with _put(filesystem, path) as temporary, filesystem.open_output_stream(temporary) as stream:
            yield stream
        return
    _make_folders(os.path.dirname(path))
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(os.path.dirname(path))
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _put(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """A name for a file that gets the name `path` once it is whole.

    A stream that breaks off is closed all the same, and closing it puts what there is of it.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        filesystem.move(temporary, path)
    except BaseException:
        with suppress(OSError):  # it may not even be there
            filesystem.delete_file(temporary)
        raise


def _sync(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(path: str) -> None:
    """Makes a folder and those above it, each name on the disk."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    if missing and os.path.lexists(missing[-1]):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), missing[-1])
    for folder in reversed(missing):
        os.makedirs(folder, exist_ok=True)
        _sync(os.path.dirname(folder))


def working_folder(uri: str) -> str:
    """A new local folder from which `publish` to `uri` is one rename where that is possible."""
    if is_remote(uri):
        return tempfile.mkdtemp(prefix="flowers-")
    folder = join(parent(absolute(uri)), f".writing-{uuid.uuid4().hex}")
    os.makedirs(folder)  # not mkdtemp: what is published must be readable by whom the umask allows
    return folder


def publish(folder: str, uri: str, *, last: str, beside: str = "") -> None:
    """Makes the finished local `folder` appear at `uri`, replacing what was there.

    On a local disk this is one rename, with all on the disk before and after it. In an object store the file `last` is
    put after all others, so that a reader who requires it never sees a part; what was there before goes afterwards.
    Where an old file would be overwritten before that, the old `last` is removed first.

    Args:
        folder: a local directory, on the disk of a local `uri`, for an object store without sub-directories; it is
            gone afterwards.
        uri: the place to fill.
        last: the file whose presence says that the others are complete.
        beside: in an object store, a new folder in `uri` that takes all files but `last`: what was there stays whole
            until `last` is replaced.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        _publish_locally(folder, path)
        return
    before = entries(uri)
    new = sorted(os.listdir(folder), key=lambda name: (name == last, name))
    if not beside and {entry.name for entry in before} & set(new):
        delete_file(join(uri, last))
    place = f"{path}/{beside}" if beside else path
    filesystem.create_dir(place, recursive=True)
    for name in new:
        with _put(filesystem, f"{path if name == last else place}/{name}") as temporary:
            pafs.copy_files(
                os.path.join(folder, name),
                temporary,
                source_filesystem=pafs.LocalFileSystem(),
                destination_filesystem=filesystem,
            )
    kept = {last, beside} if beside else set(new)
    for entry in before:
        if entry.name not in kept:
            (delete if entry.folder else delete_file)(join(uri, entry.name))
    shutil.rmtree(folder)


def publish_new(folder: str, uri: str) -> None:
    """As `publish`, on a local disk, but never in the place of something.

    Raises:
        FileExistsError: something is there.
    """
    path = resolve(uri)[1]
    _make_folders(os.path.dirname(path))
    _sync_all(folder)
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        raise
    _sync(os.path.dirname(path))


def _sync_all(folder: str) -> None:
    """Waits until a folder and all in it is on the disk."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(os.path.join(place, name))
        _sync(place)


def _publish_locally(folder: str, path: str) -> None:
    above = os.path.dirname(path)
    _make_folders(above)
    _sync_all(folder)
    old = f"{path}.{uuid.uuid4().hex}.old"
    if os.path.exists(path):
        os.replace(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        if os.path.exists(old):
            shutil.rmtree(path, ignore_errors=True)
            os.replace(old, path)
        raise
    _sync(above)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def local_files(uri: str, hashes: Mapping[str, str]) -> Iterator[str]:
    """Some files of the folder `uri`, checked, in a local folder: that itself, or a copy that is removed afterwards.

    Args:
        uri: the folder.
        hashes: hexadecimal SHA-256 of each file, by name.

    Raises:
        DamagedFile: a file is missing or has another hash.
    """
    with tempfile.TemporaryDirectory(prefix="flowers-") as scratch:
        folder = scratch if is_remote(uri) else absolute(uri)
        for name, expected in hashes.items():
            path = os.path.join(folder, name)
            try:
                if is_remote(uri):
                    Path(path).write_bytes(read(join(uri, name)))
                found = file_sha256(path)
            except FileNotFoundError as error:
                raise DamagedFile(f"{uri} lacks {name}") from error
            if found != expected:
                raise DamagedFile(f"{uri} is damaged: {name} has sha256 {found}, its manifest says {expected}")
        yield folder


def sweep(uri: str) -> None:
    """Removes what a killed process left half-written in the folder `uri`; nobody else may be writing there.

    What it had moved aside, to put something new in its place, is put back if nothing is there.
    """
    found = names(uri)
    for name in found:
        whole = re.fullmatch(r"(.+)\.[0-9a-f]{32}\.old", name)
        if whole and whole[1] not in found:
            filesystem, path = resolve(uri)
            filesystem.move(f"{path}/{name}", f"{path}/{whole[1]}")
    for name in filter(is_left_over, names(uri)):
        delete(join(uri, name))
        delete_file(join(uri, name))


def is_left_over(name: str) -> bool:
    """Whether a file or a folder of that name was half-written by a process that was killed."""
    return name.startswith(".writing-") or bool(re.fullmatch(r".+\.[0-9a-f]{32}\.(tmp|old)", name))


@contextmanager
def enough_space(what: str) -> Iterator[None]:
    """Names a full disk, met while `what` is written, in one line.

    Raises:
        FlowersError: the disk, or what the user may take of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise FlowersError(
            f"no space left for {what} ({error.strerror}); what was written before is whole: make room and run the "
            "same command again"
        ) from error


@contextmanager
def says_why(folder: str, size: int) -> Iterator[None]:
    """Finds out for a library that only says that it could not write into a local folder whether the disk is full.

    Args:
        folder: where it writes.
        size: bytes that it writes at least.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
            left = size + (1 << 20)  # besides, what is written around it
            while left:  # a full disk takes a part first
                left -= file.write(bytes(min(left, 1 << 20)))
        raise


def make_folder(uri: str) -> None:
    """Makes the folder `uri` and those above it.

    Raises:
        OSError: it cannot be made.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        _make_folders(path)
    else:
        filesystem.create_dir(path, recursive=True)


def stamps(uri: str) -> list[str]:
    """Name, size and time of change of each file directly in the folder `uri`, sorted."""
    filesystem, path = resolve(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(f"{info.base_name} {info.size} {info.mtime_ns}" for info in found)


def delete(uri: str, *, last: str = "") -> None:
    """Removes the folder at `uri` with all it holds; nothing happens where there is none.

    Args:
        uri: the folder.
        last: what in it stays until all else is gone: it says what the folder is, also if this is broken off.
    """
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return
    for entry in entries(uri) if last else ():
        if entry.name != last:
            (delete if entry.folder else delete_file)(join(uri, entry.name))
    filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Removes the file at `uri`; nothing happens where there is none."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.File:
        filesystem.delete_file(path)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a local file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
