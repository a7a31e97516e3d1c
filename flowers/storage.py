"""Files behind a path or a URI: read whole, write so that nobody ever sees half a file.

A URI stays a `str` (``pathlib`` turns ``s3://x`` into ``s3:/x``) and is opened through `pyarrow.fs`. What S3
refuses for the moment, or breaks off, is asked for again here and nowhere else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import shutil
import string
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs as pafs

from flowers.errors import DamagedFile, FlowersError, InputError, StoreFailed, first_line

# In the paths of the folders that Ray copies a job's working directory to, on each node.
_WORKING_COPY = "/runtime_resources/working_dir_files/"
# Pauses between tries, in seconds. In each try pyarrow itself asks again for about six seconds.
_PAUSES_S = (0.2, 0.8, 3.2)
# What is added to the name of a file until it is whole.
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")
# What another try may cure. Of uploads: one was completed, or took a part, and the answer that said so was lost.
_PASSES = re.compile(
    r"AWS Error (SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION"
    r"|NO_SUCH_UPLOAD|UNKNOWN \(HTTP status (429|5\d\d)\)|.*InvalidPart)"
)
# Buckets that failed for good when they were last asked: what follows, such as cleaning up, is tried once.
_failing: set[str] = set()
# A stream reads so many bytes ahead: in each request, if the file is as large.
_AHEAD = 1 << 22


class Sink(Protocol):
    """What takes the bytes of a file."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Takes the next bytes."""


def is_remote(uri: str) -> bool:
    """Whether `uri` names a bucket or another remote file system, not a local path."""
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of `uri` and the path inside it; a plain path is made absolute.

    That of S3 raises StoreFailed for what fails however often it is tried.

    Raises:
        InputError: the scheme is unknown or the address is malformed.
    """
    try:
        if "://" in uri:
            address = uri
            if uri.startswith("s3://"):  # a file of few MB is one request, not three
                address += ("&" if "?" in uri else "?") + "allow_delayed_open=true"
            # Blanks and letters like "ü" may be written as they are.
            filesystem, path = pafs.FileSystem.from_uri(quote(address, safe=string.punctuation))
        else:
            uri.encode()
            filesystem, path = pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    except (ValueError, OSError, ImportError) as error:  # ImportError: hf:// without its package
        raise InputError(
            f"{uri!r} cannot be opened ({first_line(error)}); "
            "give a local path or a URI that pyarrow.fs knows: s3://, gs://, hdfs://, file://"
        ) from error
    if isinstance(filesystem, pafs.S3FileSystem):
        filesystem = pafs.PyFileSystem(_Persistent(filesystem))
    return filesystem, path


class _BrokenOff(OSError):
    """Less was answered than was asked for."""


def _persist(path: str, action: Callable[[], Any], *, removes: bool = False) -> Any:
    """Does something until it succeeds, a few times at most; once, if it failed for good just before.

    Args:
        path: of what it is done to, for the error.
        action: may be done twice.
        removes: what a later try does not find, an earlier one has removed, and its answer was lost.

    Raises:
        StoreFailed: no try succeeded.
        OSError: another try would not help.
    """
    started, tries, bucket = time.monotonic(), 0, path.partition("/")[0]
    while True:
        tries += 1
        try:
            done = action()
            _failing.discard(bucket)
            return done
        except FileNotFoundError:
            if removes and tries > 1:
                return None
            raise
        except OSError as error:
            if not (isinstance(error, _BrokenOff) or _PASSES.search(str(error))):
                raise
            if tries > len(_PAUSES_S) or bucket in _failing:
                _failing.add(bucket)
                raise StoreFailed(
                    f"the object store failed at {_TEMPORARY.sub('', path)!r}: tried {tries} times in "
                    f"{time.monotonic() - started:.0f} s, the last answer: {first_line(error)}; what was written "
                    "before is whole: run the same command again when the store answers"
                ) from error
        time.sleep(_PAUSES_S[tries - 1] * random.uniform(0.5, 1))


class _Persistent(pafs.FileSystemHandler):
    """A file system whose operations are done until they succeed.

    pyarrow itself asks S3 again for what is refused or cut off. But headers that are cut off (without TLS nobody sees
    it) are an answer for it: of an empty file without a time.
    """

    def __init__(self, inner: pafs.FileSystem) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Persistent) and self.inner == other.inner

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        """See `pyarrow.fs.FileSystemHandler`, as for all that follows."""
        return str(self.inner.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: Sequence[str]) -> Any:
        def look() -> list[pafs.FileInfo]:
            found: list[pafs.FileInfo] = self.inner.get_file_info(list(paths))
            for info in found:
                if info.type == pafs.FileType.File and not info.mtime_ns:
                    raise _BrokenOff(f"the answer on {info.path} says neither size nor time")
            return found

        return _persist(", ".join(paths), look)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        return _persist(selector.base_dir, lambda: self.inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        _persist(path, lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        _persist(path, lambda: self.inner.delete_dir(path), removes=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        _persist(path, lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nothing here empties a whole store")

    def delete_file(self, path: str) -> None:
        _persist(path, lambda: self.inner.delete_file(path), removes=True)

    def move(self, src: str, dest: str) -> None:
        _persist(dest, lambda: self.inner.move(src, dest), removes=True)

    def copy_file(self, src: str, dest: str) -> None:
        _persist(dest, lambda: self.inner.copy_file(src, dest))

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(self.inner, path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.BufferedInputStream(self.open_input_file(path), _AHEAD)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Writer(self.inner, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self.inner.open_append_stream(path, metadata=metadata)


class _Reader:
    """A file to read that knows how long it is, and asks again for what was cut off."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        def opened() -> pa.NativeFile:
            file = filesystem.open_input_file(path)
            if not file.size() and "Last-Modified" not in file.metadata():
                raise _BrokenOff("the answer says neither size nor time")
            return file

        self._path = path
        self._file = _persist(path, opened)
        self._size, self._at = self._file.size(), 0

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if size < 0 else min(size, left)
        data: bytes = _persist(self._path, lambda: self._whole(count)) if count else b""
        self._at += count
        return data

    def _whole(self, count: int) -> bytes:
        data: bytes = self._file.read_at(count, self._at)
        if len(data) != count:
            raise _BrokenOff(f"{len(data)} bytes came where {count} were asked for")
        return data


class _Writer:
    """A file to write that is put when it is closed, as a whole: it can be put again."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, metadata: Any) -> None:
        self._filesystem, self._path, self._metadata = filesystem, path, metadata
        self._kept = tempfile.TemporaryFile(prefix="flowers-")  # noqa: SIM115

    @property
    def closed(self) -> bool:
        return self._kept.closed

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._kept.tell()

    def write(self, data: bytes) -> int:
        return self._kept.write(data)

    def flush(self) -> None:
        """Nothing is put before the end."""

    def close(self) -> None:
        if self.closed:
            return
        with self._kept:
            _persist(self._path, self._put)

    def _put(self) -> None:
        self._kept.seek(0)
        with self._filesystem.open_output_stream(self._path, metadata=self._metadata) as stream:
            shutil.copyfileobj(self._kept, stream, _AHEAD)


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
        with tempfile.TemporaryFile(prefix="flowers-") as kept:
            yield kept

            def fill(temporary: str) -> None:
                kept.seek(0)
                with filesystem.open_output_stream(temporary) as stream:
                    shutil.copyfileobj(kept, stream, _AHEAD)

            _put(filesystem, path, fill)
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


def _put(filesystem: pafs.FileSystem, path: str, fill: Callable[[str], None]) -> None:
    """Makes a file under another name, with `fill`, and gives it the name `path` once it is whole.

    A stream that breaks off is closed all the same, and closing it puts what there is of it.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        fill(temporary)
        filesystem.move(temporary, path)
    except BaseException:
        with suppress(OSError, StoreFailed):  # it may not even be there
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


@contextmanager
def no_empty_folders(uri: str) -> Iterator[None]:
    """Removes those local folders that the block made for what was to lie at `uri` and left empty."""
    absent, place = list[str](), absolute(uri)
    while not is_remote(uri) and not os.path.lexists(place):
        absent.append(place)
        place = os.path.dirname(place)
    try:
        yield
    finally:
        for folder in absent:
            with suppress(OSError):  # never made, or something is in it
                os.rmdir(folder)


@contextmanager
def withdrawn(uri: str) -> Iterator[None]:
    """Removes the file at `uri`, which says what its folder is, if the block fails before anything lies beside it."""
    try:
        yield
    except BaseException:
        if [found for found in names(parent(uri)) if not is_left_over(found)] == [name(uri)]:
            delete_file(uri)
        raise


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
        copy = partial(
            pafs.copy_files,
            os.path.join(folder, name),
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=filesystem,
        )
        _put(filesystem, f"{path if name == last else place}/{name}", copy)
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
