"""The pass over the photos: whoever computes, each new photo is computed once, counted, and in the caches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flowers.data import images, reading
from flowers.data.ledger import ROW, Ledger
from flowers.data.listing import LISTING
from flowers.errors import FlowersError, InputError
from flowers.features import extraction
from flowers.features.cache import FeatureCache
from flowers.features.extraction import ActorPool, Backend, Caches, Extraction, InProcess, extract, fill
from flowers.features.extractor import FeatureExtractor
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import FeatureSpec
from tests.e2e.conftest import draw

pytestmark = pytest.mark.usefixtures("ray")
SIZE = 16
# No network is needed for the pixels themselves.
PLAIN = FeatureSpec(
    cut="pixels",
    backbone="none",
    weights="none",
    image_size=SIZE,
    precision="float32",
    engine="openvino",
    max_pixels=1 << 20,
)
FLIP = replace(PLAIN, view="flip")


def network() -> FrozenNetwork:
    return FrozenNetwork(
        folder="",
        backbone="none",
        weights="none",
        image_size=SIZE,
        precision="float32",
        engine_name="openvino",
        build=dict,
    )


BACKENDS: dict[str, Callable[[], Backend]] = {
    "in process": lambda: InProcess(lambda specs: FeatureExtractor(network(), specs, 1)),
    "actors": lambda: ActorPool(network(), 2, 0, 0),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(reading, "ACTOR_ROWS", 8)  # so that the photos below are several batches
    return BACKENDS[request.param]()


def listing(files: Sequence[Path]) -> pa.Table:
    rows = [{"path": str(file), "label": file.parent.name} for file in files]
    return pa.Table.from_pylist(rows, schema=LISTING)


def decoded(table: pa.Table, known: list[bytes]) -> Any:
    return reading.stream_pixels(
        table, size=SIZE, max_pixels=1 << 20, readers=1, known=reading.digests_array(known), num_cpus=0.5
    )


def caches(folder: Path, specs: Sequence[FeatureSpec] = (PLAIN, FLIP)) -> Caches:
    return {spec: FeatureCache(str(folder / spec.key)).open() for spec in specs}


def extracted(
    files: Sequence[Path],
    found: Caches,
    backend: Backend,
    hashes: FeatureCache | None = None,
    max_bad_fraction: float = 0.5,
) -> Extraction:
    done: list[int] = []
    result = extract(
        listing(files),
        decoded,
        found,
        backend,
        hashes=hashes,
        settle=lambda rows: Ledger(rows, ("class0", "class1")),
        max_bad_fraction=max_bad_fraction,
        advance=done.append,
    )
    assert sum(done) == len(files) == result.ledger.table.num_rows
    return result


def check(files: Sequence[Path], folder: Path) -> None:
    """The caches hold the photos, each once, as they are and mirrored."""
    pixels = {hashlib.sha256(file.read_bytes()).digest(): images.decode(file.read_bytes(), SIZE) for file in files}
    for spec, cache in caches(folder).items():
        assert sorted(cache.digests()) == sorted(pixels)
        wanted = [photo[:, ::-1] if spec == FLIP else photo for photo in pixels.values()]
        np.testing.assert_array_equal(cache.rows(list(pixels)), np.stack(wanted).reshape(len(wanted), -1))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """20 pictures, one of them of one colour, the first two again at the end, and two files that are none."""
    found = sorted(draw(tmp_path / "photos", 2, 10).rglob("*.jpg"))
    Image.new("RGB", (40, 40), "red").save(found[14])
    for number in (0, 1):
        found.append(tmp_path / "photos" / f"again{number}.jpg")
        found[-1].write_bytes(found[number].read_bytes())
    for number in (5, 15):
        bad = tmp_path / "photos" / f"bad{number}.jpg"
        bad.write_bytes(b"no picture")
        found.insert(number, bad)
    return found


def good(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if "bad" not in file.name]


def test_it_stops_early_only_where_many_files_are_left(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all are counted when they are settled, which some only then turn out to be unusable."""
    here = BACKENDS["in process"]()
    extracted(files, caches(tmp_path / "cache"), here, max_bad_fraction=0.01)
    monkeypatch.setattr(extraction, "_WORTH_STOPPING", 0)
    with pytest.raises(InputError, match=r"^at least [12] of 24 files (is|are) unusable \([12] not_a_photo"):
        extracted(files, caches(tmp_path / "cache"), here, max_bad_fraction=0.01)


def test_each_new_photo_is_computed_once(
    tmp_path: Path, files: list[Path], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some all features are in the caches, of others one, and some come twice: side by side, or in other batches."""
    here, folder = BACKENDS["in process"](), tmp_path / "cache"
    first = extracted(files[:12], caches(folder), here)
    assert (first.hits, first.computed) == (0, 11)
    fill(listing(good(files)[12:15]), decoded, caches(folder, [PLAIN]), here, advance=lambda _: None)

    seen: list[pa.Table] = []
    tables = reading.tables

    def noted(dataset: Any) -> Any:
        for table in tables(dataset):
            seen.append(table)
            yield table

    found, hashes = caches(folder), FeatureCache(str(tmp_path / "hashes")).open()
    listed = [*files, files[0], good(files)[-3], good(files)[-3]]
    with monkeypatch.context() as patch:
        patch.setattr(reading, "tables", noted)
        second = extracted(listed, found, backend, hashes)
    # The first two of all lie there again, and one is listed again.
    assert (second.hits, second.computed) == (11 + 3, 9)
    check(good(files), folder)
    assert {len(cache.digests()) for cache in found.values()} == {20}  # what others wrote is known here
    if isinstance(backend, ActorPool):  # nothing comes back that grows with the features
        assert {tuple(table.column_names) for table in seen} == {(*ROW.names, "computed")}
        assert sum(table.nbytes for table in seen) < len(listed) * 400 < len(listed) * SIZE * SIZE * 3

    again = extracted(listed, caches(folder), here, FeatureCache(hashes.uri).open())
    assert (again.hits, again.computed) == (25, 0)
    assert again.ledger.table.equals(second.ledger.table)


def test_what_an_actor_raises_on_purpose_is_raised_here(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(extraction.CachingExtractor):
        def __call__(self, block: pa.Table) -> pa.Table:
            raise FlowersError("no space left")

    monkeypatch.setattr(extraction, "CachingExtractor", Full)
    with pytest.raises(FlowersError, match=r"^no space left$"):
        fill(listing(files), decoded, caches(tmp_path / "cache"), BACKENDS["actors"](), advance=lambda _: None)


def test_what_was_computed_before_it_ended_stays(tmp_path: Path, files: list[Path], backend: Backend) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    found = caches(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        fill(listing(good(files)), decoded, found, backend, advance=stop)
    kept = len(caches(tmp_path / "cache")[PLAIN].digests())
    if isinstance(backend, ActorPool):
        assert kept >= 8
    result = extracted(files, caches(tmp_path / "cache"), BACKENDS["in process"]())
    assert result.computed == 20 - kept
    check(good(files), tmp_path / "cache")


def test_a_task_that_is_tried_again_writes_the_same_part(tmp_path: Path, files: list[Path]) -> None:
    import ray

    block = reading.decode_block(reading.read_block(listing(files)), size=SIZE, max_pixels=1 << 20)
    claims = ray.remote(extraction.Claims).options(num_cpus=0).remote()
    nothing = ray.put(reading.NONE_KNOWN)
    arguments = (network(), {PLAIN: str(tmp_path / "cache")}, {PLAIN: nothing}, claims, 1)
    first = extraction.CachingExtractor(*arguments)(block)
    again = extraction.CachingExtractor(*arguments)(block)
    assert first.equals(again)
    assert first["computed"].to_pylist().count(True) == 20
    assert len(list((tmp_path / "cache").iterdir())) == 1
    other = extraction.CachingExtractor(*arguments)(block.slice(0, 20))  # another batch of the same photos
    assert not any(other["computed"].to_pylist())
    assert extraction.CachingExtractor(*arguments)(block.slice(0, 0)).schema == first.schema
