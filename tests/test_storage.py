"""Files behind a path or a URI: whole or not at all, on a disk and in a bucket."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from flowers import storage
from flowers.errors import FlowersError, InputError


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    uri = str(tmp_path / "a" / "b.txt")
    storage.write(uri, b"one")
    storage.write(uri, b"two")
    assert storage.read(uri) == b"two"
    assert tree(tmp_path) == ["a", "a/b.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    uri = str(tmp_path / "b.txt")
    storage.write(uri, b"old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(uri, b"new")
    monkeypatch.undo()
    assert storage.read(uri) == b"old"
    assert tree(tmp_path) == ["b.txt"]


def folder_of(path: Path, **files: bytes) -> str:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return str(path)


@pytest.mark.parametrize("there", [True, False])
def test_publish_replaces_a_folder(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "runs" / "best"
    if there:
        target.parent.mkdir()
        folder_of(target, old=b"1", model=b"1")
    new = folder_of(tmp_path / "new", model=b"2", manifest=b"3")
    storage.publish(new, str(target), last="manifest")
    assert tree(tmp_path) == ["runs", "runs/best", "runs/best/manifest", "runs/best/model"]
    assert (target / "model").read_bytes() == b"2"


def test_a_failed_publish_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "best"
    folder_of(target, model=b"1")
    new = folder_of(tmp_path / "new", model=b"2")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        storage.publish(new, str(target), last="model")
    assert (target / "model").read_bytes() == b"1"


def test_publish_to_a_bucket_puts_the_last_file_last(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "runs").mkdir()
    folder_of(bucket / "runs" / "best", old=b"1")
    new = folder_of(tmp_path / "new", a=b"1", manifest=b"2", z=b"3")
    order = []
    copy = pafs.copy_files

    def noted(source: str, target: str, **options: object) -> None:
        order.append(target[: -len(".0123456789abcdef0123456789abcdef.tmp")])
        copy(source, target, **options)

    monkeypatch.setattr(pafs, "copy_files", noted)
    storage.publish(new, "mem://runs/best", last="manifest")
    assert order == ["runs/best/a", "runs/best/z", "runs/best/manifest"]
    assert tree(bucket) == ["runs", "runs/best", "runs/best/a", "runs/best/manifest", "runs/best/z"]
    assert not Path(new).exists()


@pytest.mark.parametrize("where", ["{tmp_path}", "mem://runs"])
def test_a_file_made_piece_by_piece_is_whole_or_not_there(tmp_path: Path, bucket: Path, where: str) -> None:
    (bucket / "runs").mkdir()
    folder = where.format(tmp_path=tmp_path)

    def write(name: str, breaks: bool) -> None:
        with storage.writing(f"{folder}/{name}") as sink:
            sink.write(b"1")
            if breaks:
                raise OSError("the connection is lost")
            sink.write(b"2")

    write("whole", breaks=False)
    with pytest.raises(OSError, match="lost"):
        write("half", breaks=True)
    with pytest.raises(OSError, match="lost"):
        write("whole", breaks=True)
    names = [name for name in storage.names(folder) if name != "bucket"]
    assert names == ["whole"]
    assert storage.read(f"{folder}/whole") == b"12"


class Breaks:
    """`pafs.copy_files`, of which the given call leaves half a file and an error, as a lost connection does."""

    def __init__(self, at: int) -> None:
        self.at, self.copy = at, pafs.copy_files

    def __call__(self, source: str, target: str, **options: Any) -> None:
        self.at -= 1
        if not self.at:
            with options["destination_filesystem"].open_output_stream(target) as stream:
                stream.write(Path(source).read_bytes()[:1])
                raise OSError("the connection is lost")
        self.copy(source, target, **options)


def whole(folder: Path, inner: str = "") -> bytes | None:
    """What a bundle holds, of which `manifest` says in which folder it is and what; None if there is none."""
    if not (folder / "manifest").exists():
        return None
    inner, said = (folder / "manifest").read_text().split(":")
    held = [(folder / inner / name).read_bytes() for name in ("a", "z")]
    assert held == [said.encode()] * 2, "the manifest describes what is not there"
    return held[0]


@pytest.mark.parametrize("at", range(1, 5))
def test_a_bundle_in_a_bucket_is_whole_at_every_moment(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def publish(content: str, beside: str = "") -> None:
        new = folder_of(
            tmp_path / content, a=content.encode(), z=content.encode(), manifest=f"{beside}:{content}".encode()
        )
        storage.publish(new, "mem://best", last="manifest", beside=beside)

    publish("old")
    with monkeypatch.context() as patch:
        patch.setattr(pafs, "copy_files", Breaks(at))
        if at < 4:
            with pytest.raises(OSError, match="lost"):
                publish("new", "files-1")
            assert whole(bucket / "best") == b"old"
        else:
            publish("new", "files-1")
            assert whole(bucket / "best") == b"new"
            assert tree(bucket) == ["best", "best/files-1", "best/files-1/a", "best/files-1/z", "best/manifest"]
    publish("newer", "files-2")
    assert whole(bucket / "best") == b"newer"
    assert tree(bucket) == ["best", "best/files-2", "best/files-2/a", "best/files-2/z", "best/manifest"]


@pytest.mark.parametrize("at", range(1, 4))
def test_a_folder_in_a_bucket_that_is_overwritten_is_never_mixed(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def publish(content: str) -> None:
        new = folder_of(tmp_path / content, a=content.encode(), z=content.encode(), manifest=f":{content}".encode())
        storage.publish(new, "mem://best", last="manifest")

    publish("old")
    with monkeypatch.context() as patch:
        patch.setattr(pafs, "copy_files", Breaks(at))
        with pytest.raises(OSError, match="lost"):
            publish("new")
    assert whole(bucket / "best") is None
    publish("newer")
    assert whole(bucket / "best") == b"newer"
    assert tree(bucket) == ["best", "best/a", "best/manifest", "best/z"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", ["write", "move"])
def test_a_write_to_a_bucket_that_breaks_off_changes_nothing(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, step: str, there: bool
) -> None:
    """Closing a stream of pyarrow puts what was written, also when it is closed by an error."""
    resolve = storage.resolve

    class Stream:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> None:
            self.stream.write(data[:1])
            if step == "write":
                raise OSError("the connection is lost")
            self.stream.write(data[1:])

    class Breaking:
        def __init__(self, filesystem: pafs.FileSystem) -> None:
            self.filesystem = filesystem

        def __getattr__(self, name: str) -> Any:
            return getattr(self.filesystem, name)

        def open_output_stream(self, path: str) -> Stream:
            return Stream(self.filesystem.open_output_stream(path))

        def move(self, source: str, target: str) -> None:
            raise OSError("the connection is lost")

    if there:
        storage.write("mem://a", b"old")
    before = tree(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "resolve", lambda uri: (Breaking(resolve(uri)[0]), resolve(uri)[1]))
        with pytest.raises(OSError, match="lost"):
            storage.write("mem://a", b"new")
    assert tree(bucket) == before
    assert not there or storage.read("mem://a") == b"old"


@pytest.mark.parametrize("remote", [False, True])
def test_entries_know_sizes_and_times(tmp_path: Path, bucket: Path, remote: bool) -> None:
    folder = "mem://x" if remote else str(tmp_path / "x")
    storage.make_folder(storage.join(folder, "b"))
    storage.write(storage.join(folder, "b", "inner"), b"123")
    storage.write(storage.join(folder, "a"), b"1")
    os.utime((bucket if remote else tmp_path) / "x" / "a", (5, 5))
    first, second = storage.entries(folder)
    assert (first.name, first.folder, first.size, first.changed) == ("a", False, 1, 5.0)
    assert (second.name, second.folder) == ("b", True)
    assert [entry.name for entry in storage.entries(folder, below=True)] == ["a", "b", "inner"]
    assert storage.entry(storage.join(folder, "a")) == first
    assert storage.entry(storage.join(folder, "none")) is None


def test_what_says_what_a_folder_is_goes_last(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(uri: str) -> None:
        raise OSError("the connection is lost")

    (bucket / "x" / "z").mkdir(parents=True)
    for name in ("a", "config", "z/1"):
        storage.write(f"mem://x/{name}", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_file", lost)
        with pytest.raises(OSError, match="lost"):
            storage.delete("mem://x", last="config")
    assert "x/config" in tree(bucket)
    storage.delete("mem://x", last="config")
    assert tree(bucket) == []


def test_a_bucket_is_read_written_listed_and_emptied(bucket: Path) -> None:
    (bucket / "x").mkdir()
    storage.write("mem://x/b", b"2")
    storage.write("mem://x/a", b"1")
    assert storage.read("mem://x/a") == b"1"
    assert storage.names("mem://x") == ["a", "b"]
    assert storage.exists("mem://x/b")
    storage.delete("mem://x")
    assert not storage.exists("mem://x/b")
    assert storage.names("mem://x") == []


@pytest.mark.parametrize("name", ["missing", "folder", "locked\udcff"])
def test_what_cannot_be_read_is_an_error_that_callers_expect(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises((OSError, InputError)):
        storage.read(str(tmp_path / name))


def test_names_are_sorted_and_of_one_level(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("")
    assert storage.names(str(tmp_path)) == ["a.txt", "b"]
    assert storage.names(str(tmp_path / "none")) == []


def test_delete_removes_folders_only(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    storage.delete(str(tmp_path / "b"))
    storage.delete(str(tmp_path / "none"))
    storage.delete(str(tmp_path / "file"))
    assert tree(tmp_path) == ["file"]


def test_delete_file_removes_files_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("file", "none", "folder"):
        storage.delete_file(str(tmp_path / name))
    assert tree(tmp_path) == ["folder"]


def test_sweeping_takes_what_is_half_written_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".writing-0123" / "inner").mkdir(parents=True)
    (tmp_path / "best.0123456789abcdef0123456789abcdef.old").mkdir()
    (tmp_path / "best.0123456789abcdef0123456789abcdef.old" / "model").write_text("")
    (tmp_path / "a.json.0123456789abcdef0123456789abcdef.tmp").write_text("")
    kept = ["a.json", "best", "best/x.tmp", "old", "tmp", ".failure", "writing-0"]
    for name in ("best", "old", "writing-0"):
        (tmp_path / name).mkdir()
    for name in ("a.json", "best/x.tmp", "tmp", ".failure"):
        (tmp_path / name).write_text("")
    storage.sweep(str(tmp_path))
    assert tree(tmp_path) == sorted(kept)
    storage.sweep(str(tmp_path / "none"))


def test_a_bucket_is_swept_too(bucket: Path) -> None:
    (bucket / "x" / ".writing-1").mkdir(parents=True)
    storage.write("mem://x/a.0123456789abcdef0123456789abcdef.tmp", b"1")
    storage.write("mem://x/a", b"1")
    storage.sweep("mem://x")
    assert tree(bucket / "x") == ["a"]


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/a b/ü"
    storage.write(uri + "/x.txt", b"1")
    assert (tmp_path / "a b" / "ü" / "x.txt").read_bytes() == b"1"
    assert storage.names(uri) == ["x.txt"]
    assert storage.absolute(uri) == str(tmp_path / "a b" / "ü")
    assert storage.absolute(f"file://{tmp_path}/a%20b") == str(tmp_path / "a b")
    assert not storage.is_remote(uri)


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.absolute("runs/../x") == str(tmp_path / "x")
    assert storage.absolute("~/x") == "/home/somebody/x"
    assert storage.absolute("/x/") == "/x"
    assert storage.absolute("s3://bucket/../x/") == "s3://bucket/../x/"


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        ("/", "/a/b"),
        ("/x/", "/x/a/b"),
        ("/what?", "/what?/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("s3://bucket/x/?region=r&scheme=http", "s3://bucket/x/a/b?region=r&scheme=http"),
    ],
)
def test_join(uri: str, joined: str) -> None:
    assert storage.join(uri, "a", "b") == joined


S3 = "?endpoint_override=http://127.0.0.1:9000/&scheme=http"


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("/x/y/z.csv", "/x/y", "z.csv"),
        ("/x/y/", "/x", "y"),
        ("/x", "/", "x"),
        ("x", ".", "x"),
        ("/what?/y?/z", "/what?/y?", "z"),
        ("s3://bucket/runs/mine", "s3://bucket/runs", "mine"),
        (f"s3://bucket/runs/mine{S3}", f"s3://bucket/runs{S3}", "mine"),
        (f"s3://bucket/labels.csv{S3}", f"s3://bucket{S3}", "labels.csv"),
    ],
)
def test_parent_and_name(uri: str, folder: str, name: str) -> None:
    assert (storage.parent(uri), storage.name(uri)) == (folder, name)
    if folder != ".":
        assert storage.join(folder, name) == uri.replace("y/", "y") if uri.endswith("y/") else uri


def test_relative_and_bucket() -> None:
    assert storage.relative("/d/a/1.jpg", "/d/") == "a/1.jpg"
    assert storage.relative("/e/a/1.jpg", "/d") == "/e/a/1.jpg"
    assert storage.relative(f"s3://b/d/a/1.jpg{S3}", f"s3://b/d{S3}") == "a/1.jpg"
    assert storage.bucket(f"s3://b/d/a/1.jpg{S3}") == f"s3://b{S3}"


@pytest.mark.parametrize("uri", ["nope://x/y", "http://x/y.jpg", "://", "file://host/x", "\udcff/x", "s3://b/\udcff"])
def test_an_address_that_means_nothing(uri: str) -> None:
    with pytest.raises(InputError, match=r"cannot be opened .*; give a local path or a URI") as caught:
        storage.resolve(uri)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()


def test_hashes(tmp_path: Path) -> None:
    data = b"x" * (3 << 20)
    (tmp_path / "f").write_bytes(data)
    assert storage.sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert storage.file_sha256(str(tmp_path / "f")) == storage.sha256(data)


def test_a_full_disk_is_named_in_one_line() -> None:
    with pytest.raises(FlowersError, match="no space left for the cake") as caught, storage.enough_space("the cake"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "run the same command again" in str(caught.value)
    with pytest.raises(PermissionError), storage.enough_space("the cake"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_library_that_does_not_say_that_the_disk_is_full(tmp_path: Path) -> None:
    def fails(error: Exception) -> None:
        with storage.says_why(str(tmp_path), 1):
            raise error

    with pytest.raises(RuntimeError, match="iostream"):
        fails(RuntimeError("iostream error"))
    with pytest.raises(PermissionError):
        fails(PermissionError(errno.EACCES, "no"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for error in (RuntimeError("iostream error"), OSError("file write failed")):
            with pytest.raises(OSError, match="too large") as caught:
                fails(error)
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: names of what is synced, and of what is renamed to."""
    seen: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def note(name: str, function: Any) -> Any:
        def noted(*paths: str) -> None:
            seen.append((name, os.path.basename(paths[-1])))
            function(*paths)

        return noted

    def synced(descriptor: int) -> None:
        seen.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", note("name", replace))
    monkeypatch.setattr(os, "rename", note("name", rename))
    return seen


def test_what_is_written_is_on_the_disk_before_and_after_it_gets_its_name(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    storage.write(str(tmp_path / "new" / "deep" / "file"), b"1")
    parent = tmp_path.name
    made, (temporary, *named) = steps[:2], steps[2:]
    assert made == [("sync", parent), ("sync", "new")], "the names of folders that were made"
    assert temporary[0] == "sync"
    assert temporary[1].startswith("file.")
    assert named == [("name", "file"), ("sync", "deep")]


def test_what_is_published_is_on_the_disk_before_and_after_it_gets_its_name(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    for _ in range(2):
        folder = storage.working_folder(str(tmp_path / "best"))
        for name in ("a", "b"):
            Path(folder, name).write_bytes(b"1")
        steps.clear()
        storage.publish(folder, str(tmp_path / "best"), last="b")
        order = [step for step in steps if not step[1].endswith(".old")]
        work = os.path.basename(folder)
        assert sorted(order[:2]) == [("sync", "a"), ("sync", "b")]
        assert order[2:] == [("sync", work), ("name", "best"), ("sync", tmp_path.name)]


def test_what_was_moved_aside_when_its_process_was_killed_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two renames of a replacement nothing has the name."""
    for content in (b"old", b"new"):
        folder = storage.working_folder(str(tmp_path / "best"))
        Path(folder, "a").write_bytes(content)
        if content == b"new":
            monkeypatch.setattr(os, "rename", lambda *_: os._exit(9))
            if (child := os.fork()) == 0:
                storage.publish(folder, str(tmp_path / "best"), last="a")
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        else:
            storage.publish(folder, str(tmp_path / "best"), last="a")
    assert not (tmp_path / "best").exists(), "the case is one"
    storage.sweep(str(tmp_path))
    assert (tmp_path / "best" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_folders_made_in_vain_are_removed(tmp_path: Path) -> None:
    target = str(tmp_path / "a" / "b" / "c")

    def fails(made: str) -> None:
        with storage.no_empty_folders(target):
            storage.make_folder(made)
            raise InputError("no")

    for made in (target, storage.parent(target), str(tmp_path)):
        with pytest.raises(InputError):
            fails(made)
        assert tree(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError):
        fails(target)
    assert [path.name for path in tmp_path.rglob("*")] == ["a"], "what was there stays"
    (tmp_path / "a" / "b" / "other").mkdir(parents=True)
    with pytest.raises(InputError):
        fails(target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "other"]
    with storage.no_empty_folders(target):
        storage.write(storage.join(target, "file"), b"")
    assert os.listdir(target) == ["file"]
