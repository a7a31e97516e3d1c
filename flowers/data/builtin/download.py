"""The public flower sets: fetched over HTTP with resume and checks, and unpacked without trusting them.

In the cache lie ``<name>.tgz`` (the archive), ``.part`` with ``.part.json`` (an unfinished one and what
the server said of it), ``.json`` (its hash, once verified), and ``<name>.unpacked`` with its ``.json``.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import fcntl
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from flowers.data.builtin.archive import (
    OWN,
    Archive,
    Limits,
    UnsoundArchive,
    beside,
    read_note,
    unpack,
    write_note,
)
from flowers.errors import DownloadError, InputError
from flowers.storage import file_sha256

_PHOTOS_URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
_PHOTOS_SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
_SMALL_URL = "https://aka.ms/mlnet-resources/datasets/flower_photos_small_set.zip"
ARCHIVES: dict[str, Archive] = {
    "flower_photos": Archive(_PHOTOS_URL, 228_813_984, _PHOTOS_SHA256, "tgz"),
    "flower_photos_small": Archive(_SMALL_URL, None, None, "zip"),
}


class _Again(Exception):
    """This try failed in a way that another may not; the server may have asked for a wait in seconds."""

    def __init__(self, cause: str, wait: float = 0.0) -> None:
        super().__init__(cause)
        self.wait = wait


def fetch(
    name: str, cache: str | os.PathLike[str], *,
    source: Archive | None = None, progress: bool = True, limits: Limits | None = None,
) -> str:  # fmt: skip
    """Returns the folder with one sub-folder per class, fetched and unpacked if it is not there yet.

    Args:
        name: a key of `ARCHIVES`, or any name if `source` is given.
        cache: the folder that keeps archives and what is unpacked; created if missing.
        source: what to fetch instead of ``ARCHIVES[name]``.
        progress: show a bar on stderr if that is a terminal.
        limits: time-outs, tries and caps.

    Raises:
        DownloadError: it cannot be fetched, fails its check, is not safe to unpack, or the disk is full.
        InputError: the name is not known.
    """
    archive, limits = source or ARCHIVES.get(name), limits or Limits()
    if archive is None:
        raise InputError(f"unknown data set {name!r}: known are {', '.join(ARCHIVES)}; choose one, or {OWN}")
    path, target = Path(cache, f"{name}.{archive.kind}"), Path(cache, f"{name}.unpacked")
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        with lock(Path(cache, f"{name}.lock")):
            done = read_note(target)
            same = done.get("url") == archive.url and archive.sha256 in (None, done.get("sha256"))
            if not (same and target.is_dir()):
                sha256 = _obtain(archive, path, limits, progress)
                try:
                    top = unpack(path, archive, target, limits)
                except UnsoundArchive as error:
                    path.unlink()
                    beside(path).unlink()
                    raise DownloadError(f"{error}: deleted; run again or {OWN}") from error
                done = {"url": archive.url, "sha256": sha256, "top": top}
                write_note(target, done)
            return str(target / done["top"])
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full: free some space" if full else f"{error.strerror or error}: make it writable"
        raise DownloadError(f"cannot store {name} in {cache}: {what}, or choose another cache folder") from error


def _obtain(archive: Archive, path: Path, limits: Limits, progress: bool) -> str:
    """Brings the verified archive to `path`, from the network only if need be; returns its hash."""
    received = ""
    for _ in range(3 if path.exists() else 2):  # what is in the cache, a download, and one more from scratch
        if not path.exists():
            _download(archive, path, limits, progress)
        known, size = read_note(path), path.stat().st_size
        if known.get("bytes") == size and archive.sha256 in (None, known.get("sha256")):
            return str(known["sha256"])
        received = file_sha256(str(path))
        if archive.sha256 in (None, received):
            write_note(path, {"sha256": received, "bytes": size})
            if archive.sha256 is None:
                print(f"{path.name}: {size} bytes, sha256 {received} (not known beforehand)", file=sys.stderr)
            return received
        path.unlink()
    raise DownloadError(
        f"{archive.url} is damaged or was changed: expected sha256 {archive.sha256}, received {received}; "
        f"try again later, or {OWN}"
    )


def _download(archive: Archive, path: Path, limits: Limits, progress: bool) -> None:
    """Fetches to ``<path>.part``, going on where an earlier try stopped, and renames it when complete."""
    part, best, failed = Path(f"{path}.part"), 0, 0
    beside(path).unlink(missing_ok=True)  # it speaks of an archive that is gone
    columns = (TextColumn(path.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not (progress and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar, requests.Session() as session:
        bar.add_task("", total=archive.size)
        while True:
            try:
                _try_once(archive, part, limits, session, bar)
                break
            except _Again as error:
                have = part.stat().st_size if part.exists() else 0
                # Only new ground counts, or a server that always starts over would be asked for ever.
                failed, best = (1, have) if have > best else (failed + 1, best)
                if failed >= limits.tries:
                    hint = f"check the connection, or put the archive at {path} by hand, or {OWN}"
                    raise DownloadError(f"cannot fetch {archive.url}: {error}; {hint}") from error
                wait = limits.backoff * 2 ** (failed - 1) * random.uniform(0.75, 1.25)
                time.sleep(min(max(wait, error.wait), limits.longest_wait))
    os.replace(part, path)
    beside(part).unlink(missing_ok=True)


def _try_once(archive: Archive, part: Path, limits: Limits, session: requests.Session, bar: Progress) -> None:
    """One request, and the bytes it gives; raises `_Again` unless the part is complete afterwards."""
    note, url, cap = read_note(part), archive.url, archive.size or limits.archive_bytes
    have = part.stat().st_size if part.exists() and note.get("url") == url else 0
    if have and have == note.get("total"):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "flowers"}
    if have and note.get("validator"):  # without one, nobody can tell whether the rest fits
        headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
    try:
        with contextlib.closing(_open(url, headers, session, limits.stall)) as answer:
            code, length = answer.status_code, answer.headers.get("Content-Length", "")
            said = f"the server answers {code} {answer.reason}"
            if code in (408, 429) or code >= 500:
                raise _Again(said, _seconds(answer.headers.get("Retry-After", "")))
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            etag = answer.headers.get("ETag", "W/")
            fits = "Range" in headers and span and (int(span[1]), int(span[2])) == (have, note.get("total") or cap)
            if etag[0:1] == headers.get("If-Range", "")[0:1] == '"':  # some servers ignore If-Range
                fits = fits and etag == headers["If-Range"]
            if code == 416 or (code == 206 and not fits):
                part.unlink(missing_ok=True)
                raise _Again(f"{said}, which does not fit the part fetched so far")
            if code not in (200, 206):
                raise DownloadError(f"cannot fetch {url}: {said}; put the archive at {part.with_suffix('')}, or {OWN}")
            if code == 200:
                total, have = int(length) if length.isdigit() else archive.size, 0
                if total and (total > cap or total != (archive.size or total)):
                    bound = "exactly" if archive.size else "at most"
                    raise DownloadError(f"{url} has {total} bytes, {bound} {cap} are required: it was changed; {OWN}")
                validator = answer.headers.get("Last-Modified") if etag.startswith("W/") else etag
                # Emptied first: the note must never speak of bytes that an earlier version left.
                part.write_bytes(b"")
                note = {"url": url, "validator": validator, "total": total}
                write_note(part, note)
            with open(part, "ab") as file:
                for block in answer.raw.stream(1 << 16, decode_content=False):
                    have += len(block)
                    if have > cap:
                        break
                    file.write(block)
                    bar.update(bar.task_ids[0], total=note["total"], completed=have)
    except (requests.RequestException, HTTPError) as error:
        raise _Again(_cause(error, limits.stall)) from error
    if have > cap:
        part.unlink()
        beside(part).unlink()
        raise DownloadError(f"{url} sent more than {cap} bytes: stopped; {OWN}")
    if have < (note["total"] or 0):
        raise _Again(f"the connection ended after {have} of {note['total']} bytes")


def _open(url: str, headers: dict[str, str], session: requests.Session, stall: float) -> requests.Response:
    """GET; follows redirects itself, because `requests` would follow one from https to http."""
    here = url
    for _ in range(10):
        answer = session.get(here, headers=headers, stream=True, allow_redirects=False, timeout=stall)
        if not answer.is_redirect:
            return answer
        answer.close()
        here = _hop(url, here, answer.headers["Location"])
    raise DownloadError(f"cannot fetch {url}: more than 10 redirects; {OWN}")


def _hop(origin: str, here: str, location: str) -> str:
    there = urljoin(here, location)
    if urlsplit(there).scheme not in ("https", urlsplit(origin).scheme):
        raise DownloadError(f"{origin} leads to {there}: https is required; {OWN}")
    return there


def _cause(error: Exception, stall: float) -> str:
    """In short words, after what `requests` and `urllib3` wrap."""
    for sign, words in (
        ("NameResolution", "the host name is not found"), ("ProxyError", "the proxy does not answer"),
        ("CERTIFICATE", "its certificate is not trusted"), ("timed out", f"nothing came for {stall:g} s"),
        ("refused", "the connection is refused"), ("unreachable", "the network is unreachable"),
        ("IncompleteRead", "the connection ended too early"),
    ):  # fmt: skip
        if sign in repr(error):
            return words
    return f"the connection broke ({type(error).__name__})"


def _seconds(after: str) -> float:
    """Retry-After, a number of seconds or a date, as seconds from now; 0 where it is absent or odd."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return float(after) if after.isdigit() else email.utils.parsedate_to_datetime(after).timestamp() - time.time()
    return 0.0


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process at a time per data set, as the part file has room for one; nothing is left of the lock."""
    while True:
        with open(path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it before has removed that file: others may have another one by now.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
