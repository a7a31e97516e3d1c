"""The public flower sets: fetched over HTTP with resume and checks, and unpacked without trusting them.

In the cache lie ``<name>.tgz`` (the archive), ``.part`` with ``.part.json`` (an unfinished one and what
the server said of it), ``.json`` (its hash, once verified), and ``<name>.unpacked`` with its ``.json``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from flowers.errors import DownloadError, InputError


@dataclass(frozen=True)
class Archive:
    """A file on the network; `size` is in bytes; what is not known beforehand is None."""

    url: str
    size: int | None
    sha256: str | None
    kind: Literal["tgz", "zip"]


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


ARCHIVES: dict[str, Archive] = {
    "flower_photos": Archive(
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        228_813_984, "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c", "tgz",
    ),
    "flower_photos_small": Archive(
        "https://aka.ms/mlnet-resources/datasets/flower_photos_small_set.zip", None, None, "zip"
    ),
}  # fmt: skip


class _Again(Exception):
    """This try failed in a way that another may not; `wait` is what the server asked for, in seconds."""

    def __init__(self, cause: str, wait: float = 0.0) -> None:
        super().__init__(cause)
        self.wait = wait


def fetch(
    name: str,
    cache: str | os.PathLike[str],
    *,
    source: Archive | None = None,
    progress: bool = True,
    limits: Limits | None = None,
) -> str:
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
        raise InputError(f"unknown data set {name!r}: known are {', '.join(sorted(ARCHIVES))}; choose one of these")
    path, target = Path(cache) / f"{name}.{archive.kind}", Path(cache) / f"{name}.unpacked"
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        with _lock(Path(cache) / f"{name}.lock"):
            done = _read(_beside(target))
            same = done.get("url") == archive.url and archive.sha256 in (None, done.get("sha256"))
            if same and target.is_dir():
                return str(target / done["top"])
            sha256 = _obtain(archive, path, limits, progress)
            top = _unpack(path, archive, target, limits)
            _write(_beside(target), {"url": archive.url, "sha256": sha256, "top": top})
            return str(target / top)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full: free some space" if full else f"{error.strerror or error}: make it writable"
        raise DownloadError(f"cannot store {name} in {cache}: {what} or choose another cache folder") from error


def _obtain(archive: Archive, path: Path, limits: Limits, progress: bool) -> str:
    """Brings the verified archive to `path`, from the network only if need be; returns its hash."""
    received = ""
    for _ in range(3):  # a damaged file in the cache, then a damaged download, then one from scratch
        if path.exists():
            known, size = _read(_beside(path)), path.stat().st_size
            if known.get("bytes") == size and archive.sha256 in (None, known.get("sha256")):
                return str(known["sha256"])
        else:
            _download(archive, path, limits, progress)
            size = path.stat().st_size
        received = _sha256(path)
        if archive.sha256 in (None, received):
            _write(_beside(path), {"sha256": received, "bytes": size})
            if archive.sha256 is None:
                print(f"{path.name}: {size} bytes, sha256 {received} (not known beforehand)", file=sys.stderr)
            return received
        path.unlink()
    raise DownloadError(
        f"{archive.url} is damaged or was changed: expected sha256 {archive.sha256}, received {received}; "
        "try again later, or use --data with a folder of your own"
    )


def _download(archive: Archive, path: Path, limits: Limits, progress: bool) -> None:
    """Fetches to ``<path>.part``, going on where an earlier try stopped, and renames it when complete."""
    part, best, failed = Path(f"{path}.part"), 0, 0
    columns = (TextColumn(path.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = progress and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar, requests.Session() as session:
        task = bar.add_task("", total=archive.size)
        while True:
            try:
                _try_once(archive, part, limits, session, bar, task)
                break
            except _Again as error:
                have = part.stat().st_size if part.exists() else 0
                # Only new ground counts, or a server that always starts over would be asked for ever.
                failed, best = (1, have) if have > best else (failed + 1, best)
                if failed >= limits.tries:
                    raise DownloadError(
                        f"cannot fetch {archive.url}: {error}; check the connection, or put the archive at {path} "
                        "by hand, or use --data with a folder of your own"
                    ) from error
                wait = limits.backoff * 2 ** (failed - 1) * random.uniform(0.75, 1.25)
                time.sleep(min(max(wait, error.wait), limits.longest_wait))
    os.replace(part, path)
    _beside(part).unlink(missing_ok=True)


def _try_once(
    archive: Archive, part: Path, limits: Limits, session: requests.Session, bar: Progress, task: TaskID
) -> None:
    """One request, and the bytes it gives; raises `_Again` unless the part is complete afterwards."""
    note = _read(_beside(part))
    have = part.stat().st_size if part.exists() and note.get("url") == archive.url else 0
    if have and have == note.get("total"):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "flowers"}
    if have and note.get("validator"):  # without one, nobody can tell whether the rest fits
        headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
    try:
        with contextlib.closing(_open(archive.url, headers, session, limits.stall)) as answer:
            code, length = answer.status_code, answer.headers.get("Content-Length", "")
            if code == 416:
                part.unlink(missing_ok=True)
                raise _Again("the server does not have the rest of the file (416)")
            if code in (408, 429) or code >= 500:
                raise _Again(f"the server answers {code} {answer.reason}", _seconds(answer.headers.get("Retry-After")))
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if code == 206 and (span is None or int(span[1]) != have or "Range" not in headers):
                part.unlink(missing_ok=True)
                raise _Again("the server sent another part of the file than asked for")
            if code not in (200, 206):
                raise DownloadError(
                    f"cannot fetch {archive.url}: the server answers {code} {answer.reason}; "
                    f"put the archive at {str(part)[:-5]} by hand, or use --data with a folder of your own"
                )
            total = int(span[2]) if code == 206 and span else int(length) if length.isdigit() else None
            cap = archive.size or limits.archive_bytes
            if total is not None and (total > cap or (archive.size and total != archive.size)):
                bound = "exactly" if archive.size else "at most"
                raise DownloadError(
                    f"{archive.url} has {total} bytes, {bound} {cap} are required: it was changed, or something "
                    "between you and the server answers in its place; use --data with a folder of your own"
                )
            have = have if code == 206 else 0
            etag = answer.headers.get("ETag", "W/")
            validator = answer.headers.get("Last-Modified") if etag.startswith("W/") else etag
            _write(_beside(part), {"url": archive.url, "validator": validator, "total": total or archive.size})
            bar.update(task, total=total or archive.size, completed=have)
            with open(part, "ab" if have else "wb") as file:
                for block in answer.raw.stream(1 << 16, decode_content=False):
                    have += len(block)
                    if have > cap:
                        break
                    file.write(block)
                    bar.update(task, completed=have)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Again(_cause(error, limits.stall)) from error
    if have > cap:
        part.unlink()
        raise DownloadError(f"{archive.url} sent more than {cap} bytes: stopped; use --data with your own folder")
    if have < (total or archive.size or 0):
        raise _Again(f"the connection ended after {have} of {total or archive.size} bytes")


def _open(url: str, headers: dict[str, str], session: requests.Session, stall: float) -> requests.Response:
    """GET; follows redirects itself, because `requests` would follow one from https to http."""
    here = url
    for _ in range(10):
        answer = session.get(here, headers=headers, stream=True, allow_redirects=False, timeout=stall)
        if not answer.is_redirect:
            return answer
        answer.close()
        here = _hop(url, here, answer.headers["Location"])
    raise DownloadError(f"cannot fetch {url}: more than 10 redirects; use --data with a folder of your own")


def _hop(origin: str, here: str, location: str) -> str:
    there = urljoin(here, location)
    if urlsplit(there).scheme not in ("https", urlsplit(origin).scheme):
        raise DownloadError(f"{origin} leads to {there}: https is required; use --data with a folder of your own")
    return there
