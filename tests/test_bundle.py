"""The bundle: whole or not at all, checked when read, told by its path alone."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowers import bundle, storage
from flowers.bundle import LABELS, MANIFEST, MODEL, TYPICALITY, load_bundle, save_bundle
from flowers.data.images import CHANGES, DECODER_VERSION
from flowers.errors import DamagedFile, FlowersError, InputError
from flowers.inference.engine import ENGINES
from flowers.inference.openvino_engine import NETWORK, OpenVINOEngine
from flowers.predictor import Predictor
from tests.toys import by_colour, typical

SIZE, CLASSES = 8, ["daisy", "rose", "tulip"]
DESCRIPTION = {"classes": CLASSES, "image_size": SIZE, "backbone": "none"}
FILES = [LABELS, MANIFEST, MODEL, "network.bin", "network.xml"]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def classifier(seed: int) -> Any:
    model = by_colour(SIZE, CLASSES).model
    logits = model.get_layer("head").get_layer("logits")
    rng = np.random.default_rng(seed)
    logits.set_weights([rng.normal(size=value.shape) for value in logits.get_weights()])
    return model


def answer(model: Any) -> Any:
    return np.asarray(model(PIXELS, training=False))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bundle in the place that a run has for its best one."""
    save_bundle(classifier(1), DESCRIPTION, str(tmp_path / "run" / "best"))
    return tmp_path / "run" / "best"


def test_round_trip(saved: Path) -> None:
    loaded = load_bundle(str(saved))
    assert loaded.classes == tuple(CLASSES)
    assert loaded.image_size == SIZE
    np.testing.assert_array_equal(answer(loaded.model), answer(classifier(1)))
    assert sorted(path.name for path in saved.iterdir()) == FILES
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


def test_the_manifest_describes_the_bundle(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    assert manifest == load_bundle(str(saved)).manifest
    assert manifest["schema"] == bundle.SCHEMA
    assert manifest["decoder_version"] == DECODER_VERSION
    assert {name: manifest[name] for name in DESCRIPTION} == DESCRIPTION
    assert sorted([MANIFEST, *manifest["files"]]) == FILES
    for name, recorded in manifest["files"].items():
        data = (saved / name).read_bytes()
        assert recorded == {"sha256": storage.sha256(data), "bytes": len(data)}


@pytest.mark.parametrize("form", ["run folder", "slash", "file://", "relative"])
def test_every_way_to_name_it(saved: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent.parent)
    uri = {
        "run folder": str(saved.parent),
        "slash": f"{saved}/",
        "file://": f"file://{saved}",
        "relative": "run/best",
    }[form]
    np.testing.assert_array_equal(answer(load_bundle(uri).model), answer(classifier(1)))


@pytest.mark.parametrize("uri", ["run/best", "file://{}/run/best"])
def test_saving_to_every_form_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    save_bundle(classifier(1), DESCRIPTION, uri.format(tmp_path))
    assert sorted(path.name for path in (tmp_path / "run" / "best").iterdir()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_its_version_says_when_it_was_saved_and_grows(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bundle.saved(str(saved))
    moment = datetime.strptime(str(first), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)
    assert first < 1 << 53, "JavaScript reads it exactly"

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Earlier:
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(bundle, "datetime", Earlier)  # the clock was set back
    save_bundle(classifier(2), DESCRIPTION, str(saved))
    assert bundle.saved(str(saved)) == first + 1
    assert bundle.saved(str(saved.parent)) == 0
    (saved / MANIFEST).write_text("[]")
    assert bundle.saved(str(saved)) == 0


def test_in_a_bucket_the_old_bundle_is_whole_until_the_new_one_is(bucket: Path) -> None:
    (bucket / "run").mkdir()
    for seed, name in ((1, "one"), (2, "two"), (3, "three")):
        save_bundle(classifier(seed), {**DESCRIPTION, "backbone": name}, "mem://run/best")
        loaded = load_bundle("mem://run")
        assert loaded.manifest["backbone"] == name
        np.testing.assert_array_equal(answer(loaded.model), answer(classifier(seed)))
    assert loaded.manifest["folder"].startswith("files-")
    held = sorted(path.name for path in (bucket / "run" / "best").iterdir())
    assert held == sorted([MANIFEST, loaded.manifest["folder"]]), "what nobody needs is gone"
    copied = bucket / "copied"
    shutil.copytree(bucket / "run" / "best", copied)
    assert load_bundle(str(copied)).classes == tuple(CLASSES), "a copy on a disk is a bundle as well"
    network = bucket / "run" / "best" / loaded.manifest["folder"] / MODEL
    network.write_bytes(network.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=rf"has \d+ bytes of {MODEL}, not \d+"):
        load_bundle("mem://run")
    network.unlink()
    with pytest.raises(DamagedFile, match=f"has no bytes of {MODEL}"):
        load_bundle("mem://run")


def test_a_manifest_that_leads_elsewhere(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["sha256"]
    (saved / MANIFEST).write_text(json.dumps({**manifest, "folder": "../../secret"}))
    with pytest.raises(DamagedFile, match="is none of a bundle: folder: "):
        load_bundle(str(saved))


def test_a_new_bundle_replaces_the_old_one(saved: Path) -> None:
    save_bundle(classifier(2), {**DESCRIPTION, "backbone": "another"}, str(saved))
    loaded = load_bundle(str(saved))
    assert loaded.manifest["backbone"] == "another"
    np.testing.assert_array_equal(answer(loaded.model), answer(classifier(2)))
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


def broken(*_: Any, **__: Any) -> None:
    raise OSError("No space left on device")


@pytest.mark.parametrize("where", ["model", "manifest", "publish", "rename"])
def test_an_interrupted_save_leaves_the_old_bundle_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model = classifier(2)
    if where == "model":
        monkeypatch.setattr(model, "save", broken)
    elif where == "manifest":
        monkeypatch.setattr(storage, "write", broken)
    elif where == "publish":
        monkeypatch.setattr(storage, "publish", broken)
    else:
        monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="No space"):
        save_bundle(model, DESCRIPTION, str(saved))
    monkeypatch.undo()
    np.testing.assert_array_equal(answer(load_bundle(str(saved)).model), answer(classifier(1)))
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty", "another model", "missing"])
def test_a_damaged_model_is_not_loaded(saved: Path, how: str) -> None:
    data = bytearray((saved / MODEL).read_bytes())
    if how == "bit flip":
        data[len(data) // 2] ^= 1
    elif how == "truncated":
        del data[-1]
    elif how == "empty":
        data.clear()
    (saved / MODEL).write_bytes(data)
    if how == "another model":
        classifier(2).save(saved / MODEL)
    elif how == "missing":
        (saved / MODEL).unlink()
    with pytest.raises(DamagedFile, match=MODEL):
        load_bundle(str(saved))


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1, "classes": ["dai', "\x00\x01", b"\xff\xfe", '{"schema": 1}'])
def test_a_damaged_manifest_is_reported(saved: Path, text: str | bytes) -> None:
    (saved / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedFile, match=MANIFEST) as caught:
        load_bundle(str(saved))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"decoder_version": "0"}, "photo decoder 0"), ({"schema": 2}, "unknown schema"), ({"schema": None}, "schema")],
)
def test_another_version_is_refused(saved: Path, change: dict[str, Any], words: str) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InputError, match=words):
        load_bundle(str(saved))
    (saved / MANIFEST).write_text("[]")
    with pytest.raises(InputError, match="schema"):
        load_bundle(str(saved))


def test_a_bundle_of_an_earlier_decoder_is_usable(saved: Path) -> None:
    """It sees all but a few odd photos as it was trained on them."""
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["sha256"]
    for version in ("1", *CHANGES):
        (saved / MANIFEST).write_text(json.dumps({**manifest, "decoder_version": version}))
        assert load_bundle(str(saved)).manifest["decoder_version"] == version


@pytest.mark.parametrize(
    "change",
    [{"classes": ["tulip", "rose", "daisy"]}, {"classes": ["daisy"]}, {"image_size": 64}, {"sha256": "0" * 64}],
)
def test_a_manifest_that_was_changed_is_not_believed(saved: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    assert {**manifest, **change} != manifest
    (saved / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DamagedFile, match="was changed after it was saved"):
        load_bundle(str(saved))
    (saved / MANIFEST).write_text(json.dumps(dict(sorted(manifest.items())), indent=4))
    assert load_bundle(str(saved)).manifest == manifest


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["daisy"], "3 outputs, and its manifest names 1"),
        (["a", "b", "c", "d"], "names 4"),
        ("abc", "classes: Input should be a valid list"),
        ([1, 2, 3], "classes.0: Input should be a valid string"),
    ],
)
def test_as_many_classes_as_outputs(tmp_path: Path, classes: Any, words: str) -> None:
    uri = str(tmp_path / "best")
    save_bundle(classifier(1), {**DESCRIPTION, "classes": classes}, uri)
    for engine in ENGINES:
        with pytest.raises(DamagedFile, match=words):
            Predictor(load_bundle(uri), engine=engine)


def test_a_network_that_answers_otherwise_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = OpenVINOEngine._compute
    monkeypatch.setattr(OpenVINOEngine, "_compute", lambda self, photos: [1 - one for one in compute(self, photos)])
    with pytest.raises(FlowersError, match=r"of 9 photos \d have another class and scores differ by up to"):
        save_bundle(classifier(1), DESCRIPTION, str(tmp_path / "best"), PIXELS)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_rounds_too_much_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounding(step: float) -> None:
        def computed(self: OpenVINOEngine, photos: Any) -> Any:
            probabilities, *others = compute(self, photos)
            return [probabilities + step * (self.precision == "bfloat16"), *others]

        monkeypatch.setattr(OpenVINOEngine, "_compute", computed)

    compute, uri = OpenVINOEngine._compute, str(tmp_path / "best")
    for step, found in ((0.01, "bfloat16"), (0.03, "float32")):
        rounding(step)
        assert save_bundle(classifier(1), {**DESCRIPTION, "precision": "bfloat16"}, uri, PIXELS) == found
        assert load_bundle(uri).precision == found


def test_labels_are_where_plain_keras_users_find_them(saved: Path) -> None:
    assert (saved / LABELS).read_text().splitlines() == CLASSES
    with zipfile.ZipFile(saved / MODEL) as archive:
        assert archive.read(LABELS).decode().splitlines() == CLASSES


def test_a_bundle_of_an_earlier_version_is_converted(saved: Path) -> None:
    """It has the Keras model and no hash of its manifest."""
    manifest = json.loads((saved / MANIFEST).read_text())
    expected = Predictor(load_bundle(str(saved))).run(PIXELS)
    for name in (LABELS, *NETWORK):
        (saved / name).unlink()
        del manifest["files"][name]
    del manifest["sha256"]
    (saved / MANIFEST).write_text(json.dumps(manifest))
    old = load_bundle(str(saved))
    assert not old.converted
    for found, wanted in zip(Predictor(old).run(PIXELS), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_what_tells_photos_of_other_things(saved: Path, tmp_path: Path) -> None:
    """It is a file like the others; a bundle of an earlier version lacks it, and says what to do."""
    with pytest.raises(InputError, match=r"^--unknown: the bundle .* has no typicality.bin.*train it again") as caught:
        Predictor(load_bundle(str(saved)), unknown=0.05)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no typicality"):
        load_bundle(str(saved)).typicality()
    uri, known = tmp_path / "telling", typical(3, validated=19)
    save_bundle(classifier(1), DESCRIPTION, str(uri), typicality=known)
    loaded = load_bundle(str(uri))
    assert loaded.manifest["files"][TYPICALITY]["bytes"] == len(known.to_bytes())
    assert loaded.typicality(0.05).to_bytes() == known.to_bytes()
    with pytest.raises(InputError, match=r"received 0.049, required is 0.05 or more .* validated on 19 photos"):
        loaded.typicality(0.049)
    answers = Predictor(loaded, unknown=0.05).run(PIXELS)
    assert np.isfinite(answers.typicality).all()
    assert np.isnan(Predictor(loaded).run(PIXELS).typicality).all()
    data = bytearray(known.to_bytes())
    data[-1] ^= 1
    (uri / TYPICALITY).write_bytes(data)
    with pytest.raises(DamagedFile, match=TYPICALITY):
        load_bundle(str(uri))


def test_a_file_that_is_none_of_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash is right: somebody made it so."""
    for number, data in enumerate((b"", b"\xff" * 12, typical(4).to_bytes(), bytes(1000))):
        known = typical(3)
        monkeypatch.setattr(type(known), "to_bytes", lambda self, data=data: data)
        uri = str(tmp_path / str(number))
        save_bundle(classifier(1), DESCRIPTION, uri, typicality=known)
        monkeypatch.undo()
        with pytest.raises(DamagedFile, match=f"{TYPICALITY} is none of a bundle"):
            Predictor(load_bundle(uri), unknown=0.05)


@pytest.mark.parametrize("name", NETWORK)
def test_damaged_files_of_the_engine_are_not_loaded(saved: Path, name: str) -> None:
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(DamagedFile, match=name):
        load_bundle(str(saved))


def test_a_bundle_without_a_hash_of_its_manifest_is_loaded(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["sha256"]
    (saved / MANIFEST).write_text(json.dumps(manifest))
    assert load_bundle(str(saved)).manifest == manifest


def test_where_there_is_no_bundle(saved: Path) -> None:
    for uri in (saved.parent / "none", saved / MODEL):
        with pytest.raises(InputError, match="there is no bundle"):
            load_bundle(str(uri))
    (saved / MANIFEST).unlink()
    for uri in (saved, saved.parent):
        with pytest.raises(InputError, match="there is no bundle"):
            load_bundle(str(uri))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(["schema", "decoder_version", "classes", "image_size", "files", "folder", "precision", "saved"]),
    JSON,
    st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_manifest_is_a_bundle_or_one_line(saved: Path, key: str, value: Any, remove: bool) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    try:
        changed = {name: old for name, old in manifest.items() if name not in (key, "sha256")}
        (saved / MANIFEST).write_text(json.dumps(changed if remove else {**changed, key: value}))
        bundle = load_bundle(str(saved))
        said = f"{len(bundle.classes)} classes, {bundle.image_size} pixels, {bundle.size} bytes"
    except FlowersError as error:
        said = str(error)
    finally:
        (saved / MANIFEST).write_text(json.dumps(manifest))
    assert len(said.splitlines()) == 1
    assert len(said) < 600


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", ""])
def test_a_file_that_a_manifest_names_elsewhere_is_not_touched(saved: Path, name: str) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile, match="is none of a bundle: files"):
        load_bundle(str(saved))
