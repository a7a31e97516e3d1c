"""Downloads against a real server on this machine that misbehaves in every way a network does."""

from __future__ import annotations

import errno
import hashlib
import io
import random
import re
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flowers.data.builtin import download
from flowers.data.builtin.archive import Archive, Limits
from flowers.data.builtin.download import ARCHIVES, fetch
from flowers.errors import DownloadError, InputError

QUICK = Limits(stall=0.4, tries=3, backoff=0.01, longest_wait=0.3)
PHOTO = random.Random(0).randbytes(150_000)


def tgz(*members: tuple[str, bytes | str]) -> bytes:
    """A tar.gz; text instead of bytes makes a symbolic link to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zipped(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


GOOD = tgz(("photos/LICENSE.txt", b"free"), ("photos/roses/a.jpg", PHOTO), ("photos/tulips/b.jpg", b"b"))


class Site(ThreadingHTTPServer):
    """Serves `body`; each entry of `plan` spoils one request, in order, and then all goes well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag = GOOD, '"one"'
        self.plan: list[Any] = []
        self.asked: list[str | None] = []  # the Range of every request
        self.sent = 0  # bytes of bodies
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/x"

    def archive(self, kind: str = "tgz", **other: Any) -> Archive:
        known = {"size": len(self.body), "sha256": hashlib.sha256(self.body).hexdigest()} | other
        return Archive(self.url, kind=kind, **known)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server
        site.asked.append(self.headers["Range"])
        step = site.plan.pop(0) if site.plan else {}
        if "call" in step:
            step["call"]()
        body, start = site.body, 0
        if "corrupt" in step:
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        fresh = self.headers["If-Range"] == site.etag or "ignore_if_range" in step
        if wanted and fresh and "ignore_range" not in step:
            start = int(wanted[1])
        code = step.get("code", 206 if start else 200)
        self.send_response(code)
        for name, value in step.get("headers", {}).items():
            self.send_header(name, value)
        if code not in (200, 206):
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if "no_length" not in step:
            self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", site.etag)
        self.end_headers()
        body = body[start:][: step.get("cut")] + step.get("more", b"")
        site.sent += len(body)
        self.wfile.write(body)
        if "stall" in step:
            self.wfile.flush()
            site.release.wait(5)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def check(folder: str) -> None:
    assert Path(folder).name == "photos"
    assert Path(folder, "roses", "a.jpg").read_bytes() == PHOTO
    assert Path(folder, "tulips", "b.jpg").read_bytes() == b"b"


def test_fetches_once_and_then_needs_no_network(site: Site, tmp_path: Path) -> None:
    source = site.archive()
    check(fetch("set", tmp_path, source=source, limits=QUICK))
    assert len(site.asked) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "set.tgz", "set.tgz.json", "set.unpacked", "set.unpacked.json",
    ]  # fmt: skip
    check(fetch("set", tmp_path, source=source, limits=QUICK))
    assert len(site.asked) == 1


def test_resumes_after_every_cut(site: Site, tmp_path: Path) -> None:
    site.plan = [{"cut": 30_000}, {"cut": 50_000}, {"cut": 40_000}, {"cut": 1}]
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    assert site.asked == [None, "bytes=30000-", "bytes=80000-", "bytes=120000-", "bytes=120001-"]
    assert site.sent == len(GOOD)


def test_resumes_a_chunkless_body_without_length(site: Site, tmp_path: Path) -> None:
    site.plan = [{"cut": 70_000, "no_length": True}]
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    assert site.sent == len(GOOD)


def test_an_interrupt_keeps_the_part(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    site.plan = [{"cut": 90_000}]
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch("set", tmp_path, source=site.archive(), limits=QUICK)
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    assert site.asked[1] == "bytes=90000-"
    assert site.sent == len(GOOD)


def test_a_stall_is_ended_and_resumed(site: Site, tmp_path: Path) -> None:
    site.plan = [{"cut": 65_536, "stall": True}]
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    assert len(site.asked) == 2


def test_one_corrupt_download_is_repeated_from_scratch(site: Site, tmp_path: Path) -> None:
    site.plan = [{"corrupt": True}]
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    assert site.asked == [None, None]


def test_a_wrong_hash_twice_names_both(site: Site, tmp_path: Path) -> None:
    source = site.archive(sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"expected sha256 {'0' * 64}.*{hashlib.sha256(GOOD).hexdigest()}"):
        fetch("set", tmp_path, source=source, limits=QUICK)
    assert len(site.asked) == 2
    assert not list(tmp_path.glob("set.tgz*"))


@pytest.mark.parametrize("spoil", ["ignore_range", "etag", "ignore_if_range", "416"])
def test_a_part_that_does_not_fit_is_thrown_away(site: Site, tmp_path: Path, spoil: str) -> None:
    new = tgz(("photos/roses/a.jpg", PHOTO[::-1]), ("photos/tulips/b.jpg", b"b"))

    def change() -> None:
        if spoil in ("etag", "ignore_if_range"):
            site.body, site.etag = new + bytes(len(GOOD) - len(new)), '"two"'

    bad = {"code": 416} if spoil == "416" else {spoil: True}
    site.plan = [{"cut": 90_000}, {**bad, "call": change}]
    # The hash is not known: only the headers can tell that the content changed.
    folder = fetch("set", tmp_path, source=site.archive(size=None, sha256=None), limits=QUICK)
    changed = spoil in ("etag", "ignore_if_range")
    assert Path(folder, "roses", "a.jpg").read_bytes() == (PHOTO[::-1] if changed else PHOTO)


def test_follows_redirects(site: Site, tmp_path: Path) -> None:
    site.plan = [{"code": 302, "headers": {"Location": "/a"}}, {"code": 308, "headers": {"Location": site.url}}]
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    site.plan = [{"code": 301, "headers": {"Location": "/loop"}}] * 20
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        fetch("loop", tmp_path, source=site.archive(), limits=QUICK)


def test_no_redirect_away_from_https() -> None:
    assert download._hop("http://a/", "http://a/", "http://b/") == "http://b/"
    assert download._hop("http://a/", "http://a/", "https://b/") == "https://b/"
    for origin, to in (("https://a/", "http://a/"), ("http://a/", "file:///x")):
        with pytest.raises(DownloadError, match="https is required"):
            download._hop(origin, origin, to)


def test_waits_as_long_as_the_server_asks(site: Site, tmp_path: Path) -> None:
    site.plan = [{"code": 503, "headers": {"Retry-After": "1"}}, {"code": 429, "headers": {"Retry-After": "9999"}}]
    start = time.monotonic()
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))
    assert 0.6 <= time.monotonic() - start < 3  # 9999 s are cut to `longest_wait`


def test_retry_after_as_date_or_nonsense() -> None:
    from email.utils import formatdate

    assert 8 < download._seconds(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert [download._seconds(odd) for odd in ("", "soon", "-1")] == [0, 0, 0]


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_not_repeated(site: Site, tmp_path: Path, code: int) -> None:
    site.plan = [{"code": code}]
    with pytest.raises(DownloadError, match=rf"answers {code} .*set\.tgz, or use --data"):
        fetch("set", tmp_path, source=site.archive(), limits=QUICK)
    assert len(site.asked) == 1


def test_gives_up_on_a_server_that_always_starts_over(site: Site, tmp_path: Path) -> None:
    site.plan = [{"cut": 10_000, "ignore_range": True}] * 9
    with pytest.raises(DownloadError, match="ended too early"):
        fetch("set", tmp_path, source=site.archive(), limits=QUICK)
    assert len(site.asked) == QUICK.tries


def test_never_more_bytes_than_stated(site: Site, tmp_path: Path) -> None:
    site.plan = [{"more": b"x" * 1_000_000, "no_length": True}]
    with pytest.raises(DownloadError, match=f"more than {len(GOOD)} bytes"):
        fetch("set", tmp_path, source=site.archive(), limits=QUICK)
    with pytest.raises(DownloadError, match="exactly 10 are required"):
        fetch("set", tmp_path, source=site.archive(size=10), limits=QUICK)
    small = Limits(stall=0.4, tries=1, archive_bytes=1000)
    with pytest.raises(DownloadError, match="at most 1000 are required"):
        fetch("set", tmp_path, source=site.archive(size=None, sha256=None), limits=small)
    assert not list(tmp_path.glob("set.tgz*"))


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.tgz"
        with pytest.raises(DownloadError) as caught:
            fetch("set", tmp_path, source=Archive(url, None, None, "tgz"), limits=QUICK)
    text = str(caught.value)
    assert "\n" not in text
    for part in (url, "the connection is refused", "check the connection", str(tmp_path / "set.tgz"), "--data"):
        assert part in text


def test_an_archive_put_by_hand_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(GOOD)
    source = Archive("http://127.0.0.1:9/x", len(GOOD), hashlib.sha256(GOOD).hexdigest(), "tgz")
    check(fetch("set", tmp_path, source=source, limits=QUICK))


def test_a_damaged_archive_in_the_cache_is_replaced(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(b"half")
    site.plan = [{"corrupt": True}]
    check(fetch("set", tmp_path, source=site.archive(), limits=QUICK))


def test_an_unknown_hash_is_recorded(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.body = zipped(("photos/roses/a.jpg", PHOTO), ("photos/tulips/b.jpg", b"b"), ("__MACOSX/photos/._a", b"?"))
    check(fetch("set", tmp_path, source=site.archive("zip", size=None, sha256=None), limits=QUICK))
    sha256 = hashlib.sha256(site.body).hexdigest()
    assert sha256 in capsys.readouterr().err
    assert sha256 in (tmp_path / "set.zip.json").read_text()
    assert not list(tmp_path.rglob("*MACOSX*"))


def test_a_half_unpacked_folder_is_redone(site: Site, tmp_path: Path) -> None:
    source = site.archive()
    folder = fetch("set", tmp_path, source=source, limits=QUICK)
    (tmp_path / "set.unpacked.json").unlink()
    Path(folder, "roses", "a.jpg").write_bytes(b"half")
    (tmp_path / "set.unpacked.partial").mkdir()
    check(fetch("set", tmp_path, source=source, limits=QUICK))
    assert len(site.asked) == 1
    assert not (tmp_path / "set.unpacked.partial").exists()


def test_a_full_disk_is_told(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DownloadError, match="the disk is full: free some space"):
        fetch("set", tmp_path, source=site.archive(), limits=QUICK)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="flower_photos, flower_photos_small"):
        fetch("roses", "unused")
    assert all(a.url.startswith("https://") for a in ARCHIVES.values())


EVIL = [
    ("tgz", tgz(("photos/ok.jpg", b"1"), ("../evil", b"1"))),
    ("tgz", tgz(("photos/../../evil", b"1"))),
    ("tgz", tgz(("/evil", b"1"))),
    ("tgz", tgz(("photos/link", "/"), ("photos/link/evil", b"1"))),
    ("tgz", tgz(("photos\\..\\evil", b"1"))),
    ("zip", zipped(("../evil", b"1"))),
    ("zip", zipped(("/evil", b"1"))),
    ("zip", zipped(("C:/evil", b"1"))),
    ("zip", zipped(("..\\evil", b"1"))),
    ("tgz", tgz(*((f"photos/{k}", b"") for k in range(30)))),
    ("zip", zipped(("photos/bomb", bytes(3_000_000)))),
    ("tgz", tgz(("alone.txt", b"no folders"))),
]


@pytest.mark.parametrize(("kind", "content"), EVIL, ids=lambda value: value if isinstance(value, str) else "")
def test_an_unsafe_archive_leaves_nothing(tmp_path: Path, kind: str, content: bytes) -> None:
    cache = tmp_path / "deep" / "cache"
    cache.mkdir(parents=True)
    (cache / f"set.{kind}").write_bytes(content)
    limits = Limits(unpacked_bytes=1_000_000, files=20)
    with pytest.raises(DownloadError, match="is refused, nothing of it is used"):
        fetch("set", cache, source=Archive("http://127.0.0.1:9/x", None, None, kind), limits=limits)  # type: ignore[arg-type]
    left = {p.name for p in tmp_path.rglob("*")}
    assert left == {"deep", "cache", f"set.{kind}", f"set.{kind}.json"}


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_an_unsound_archive_is_deleted(tmp_path: Path, kind: str) -> None:
    content = GOOD[:90_000] if kind == "tgz" else zipped(("photos/a", PHOTO))[:90_000]
    (tmp_path / f"set.{kind}").write_bytes(content)
    with pytest.raises(DownloadError, match="is not a sound"):
        fetch("set", tmp_path, source=Archive("http://127.0.0.1:9/x", None, None, kind), limits=QUICK)  # type: ignore[arg-type]
    assert not (tmp_path / f"set.{kind}").exists()
    assert not (tmp_path / "set.unpacked").exists()
