"""What a store refuses for the moment is asked for again; what it refuses for good is said in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from pyarrow import fs as pafs

from flowers import storage
from flowers.errors import StoreFailed
from flowers.features.cache import FeatureCache
from jobs.check import main as check
from tests.e2e.conftest import ran
from tests.e2e.head import free_port
from tests.s3 import store
from tests.s3.conftest import BUCKET
from tests.s3.proxy import CUT
from tests.s3.store import Store

REFUSED = OSError("When reading: AWS Error SLOW_DOWN during GetObject operation: on purpose")


class Failing:
    """A file system whose operations fail so many times, before they are done or after."""

    def __init__(self, inner: pafs.FileSystem, times: int, done: bool) -> None:
        self.inner, self.times, self.done = inner, times, done

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.times -= 1
            if self.times >= 0:
                if self.done:
                    getattr(self.inner, name)(*arguments, **options)
                raise REFUSED
            return getattr(self.inner, name)(*arguments, **options)

        return call


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without their time; no store has failed before."""
    made: list[float] = []
    monkeypatch.setattr(storage, "_failing", set())
    monkeypatch.setattr("flowers.storage.time.sleep", made.append)
    return made


@pytest.fixture
def failing(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `mem://` fail as S3 does."""
    resolve = storage.resolve

    def make(times: int, done: bool = False) -> None:
        inner = Failing(resolve("mem://")[0], times, done)
        filesystem = pafs.PyFileSystem(storage._Persistent(inner))
        monkeypatch.setattr(storage, "resolve", lambda uri: (filesystem, uri.removeprefix("mem://")))

    return make


@pytest.mark.parametrize("done", [False, True])
def test_what_is_refused_three_times_is_done(
    bucket: Path, failing: Callable[..., None], pauses: list[float], done: bool
) -> None:
    (bucket / "a").write_bytes(b"old")
    operations: dict[str, Callable[[], object]] = {
        "write": lambda: storage.write("mem://a", b"new"),
        "read": lambda: storage.read("mem://a"),
        "names": lambda: storage.names("mem://"),
        "exists": lambda: storage.exists("mem://a"),
        "folder": lambda: storage.make_folder("mem://b"),
        "delete": lambda: storage.delete("mem://b"),
        "delete file": lambda: storage.delete_file("mem://a"),
    }
    found = {}
    for name, operation in operations.items():
        failing(3, done)
        pauses.clear()
        found[name] = operation()
        assert len(pauses) == 3 or (done and pauses), name  # what was done and is gone need not be done again
        assert all(0 < pause <= most for pause, most in zip(pauses, storage._PAUSES_S, strict=False))
    assert found["read"] == b"new"
    assert found["names"] == ["a"]
    assert found["exists"] is True
    assert list(bucket.iterdir()) == []


def test_what_is_refused_for_good_is_said_in_one_line_and_leaves_nothing(
    bucket: Path, failing: Callable[..., None], pauses: list[float]
) -> None:
    (bucket / "a").write_bytes(b"old")
    failing(10**6)
    with pytest.raises(StoreFailed) as caught:
        storage.write("mem://a", b"new")
    text = str(caught.value)
    assert text.startswith("the object store failed at 'a")
    assert "tried 4 times in " in text
    assert "SLOW_DOWN" in text
    assert text.endswith("run the same command again when the store answers")
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    assert [(path.name, path.read_bytes()) for path in bucket.iterdir()] == [("a", b"old")]


def test_what_no_other_try_would_help_is_not_tried_again(bucket: Path, pauses: list[float]) -> None:
    filesystem = pafs.PyFileSystem(storage._Persistent(storage.resolve("mem://")[0]))
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream("none")
    with pytest.raises(FileNotFoundError):
        filesystem.delete_file("none")
    assert pauses == []


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PAUSES_S", ())  # pyarrow takes its time too
    nobody = Store(free_port())
    text = ran(check, "--data", nobody.uri(f"{BUCKET}/photos"), "--storage", tmp_path, code=1)
    assert "error: the object store failed at 'flowers/photos': tried 1 times in " in text
    assert "connect to server; what was written" in text
    assert "not foreseen" not in text


def test_files_through_cut_connections_are_what_was_written(s3: Store) -> None:
    """12 MB are put in parts. A cut answer on an object's size would be an empty file for pyarrow."""
    large = bytes(range(256)) * (12 << 12)
    direct = s3.uri(f"{BUCKET}/files/large")
    with store.faulty(s3, seed=1, shares={CUT: 0.2}) as cutting:
        uri = cutting.uri(f"{BUCKET}/files/large")
        storage.write(uri, large)
        assert storage.read(direct) == large
        assert storage.read(uri) == large
        before, looks = cutting.counts()[CUT], 0
        while cutting.counts()[CUT] < before + 4:
            info = storage.entry(uri)
            assert info is not None
            assert info.size == len(large)
            assert info.changed
            looks += 1
            assert looks < 1000
    assert storage.names(s3.uri(f"{BUCKET}/files")) == ["large"]


def test_a_cache_whose_store_fails_is_not_taken_for_damaged(
    bucket: Path, failing: Callable[..., None], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [bytes([number]) * 32 for number in range(4)]
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    (bucket / "cache").mkdir()
    failing(0)
    cache = FeatureCache("mem://cache")
    cache.add(digests[:3], rows[:3])
    cache.flush()
    cache.add(digests[3:], rows[3:])
    (part,) = [path.name for path in (bucket / "cache").iterdir()]

    def refused(*_: object) -> bytes:
        raise REFUSED

    with monkeypatch.context() as patch:  # what is open breaks off
        patch.setattr(storage._Reader, "_whole", refused)
        with pytest.raises(StoreFailed, match=f"failed at 'cache/{part}': tried 4 times in"):
            cache.rows(digests[:3])
        with pytest.raises(StoreFailed):
            FeatureCache("mem://cache").open()
    failing(10**6)  # it has just failed for good: nobody waits for it again
    for action in (cache.flush, cache.touch, lambda: cache.rows(digests[:3]), FeatureCache("mem://cache").open):
        with pytest.raises(StoreFailed, match="tried 1 times in"):
            action()
    assert [path.name for path in (bucket / "cache").iterdir()] == [part]
    failing(3)  # it answers again, and what was pending is still there
    with pytest.raises(StoreFailed, match="tried 1 times in"):
        cache.flush()
    failing(0)
    cache.flush()
    failing(3)
    np.testing.assert_array_equal(FeatureCache("mem://cache").open().rows(digests), rows)


def test_features_can_be_read_again_after_a_store_stopped_to_answer(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of 4 MB, the first requests are answered, and the last one is not."""
    monkeypatch.setattr(storage, "_PAUSES_S", ())  # pyarrow takes its time too
    digests = [bytes([number]) * 32 for number in range(64)]
    rows = np.random.default_rng(0).random((64, 1 << 14), np.float32)
    with store.faulty(s3, seed=0, shares={}) as proxy:
        cache = FeatureCache(proxy.uri(f"{BUCKET}/cache"))
        cache.add(digests, rows)
        cache.flush()
        before = proxy.counts()["GET"] + proxy.counts()["HEAD"]
        np.testing.assert_array_equal(cache.rows(digests[:1]), rows[:1])
        few = proxy.counts()["GET"] + proxy.counts()["HEAD"] - before
        proxy.fail_after(few - 1)
        with pytest.raises(StoreFailed, match=r"failed at 'flowers/cache/rows-\w+\.parquet': tried 1 times in"):
            cache.rows(digests)
        proxy.fail_after(10**9)
        np.testing.assert_array_equal(cache.rows(digests), rows)
    assert len(storage.names(s3.uri(f"{BUCKET}/cache"))) == 1, "a part was taken for damaged"


def test_the_place_where_a_store_failed_first_is_named() -> None:
    @click.command()
    def job() -> None:
        try:
            raise StoreFailed("the object store failed at 'a'")
        finally:
            raise StoreFailed("the object store failed at 'cleaning up'")

    assert ran(job, code=1) == "error: the object store failed at 'a'"
