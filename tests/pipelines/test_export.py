"""Exports: each format is written, run by its own runtime, and its example run as it lies there."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import runpy
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from rich.console import Console

from flowers import cli
from flowers.bundle import MANIFEST, load_bundle
from flowers.config import ExportOptions
from flowers.export.formats import FORMATS
from flowers.export.record import Agreement, Export, side_by_side
from flowers.predictor import Prediction, Predictor
from flowers.published import Record, publish
from flowers.runs import Run
from jobs.export import main
from tests.toys import coloured, layered, trained

SIZE, CLASSES = 32, ["daisy", "löwenzahn ☃", "red rose"]
ALL = [(name, quantize) for name, form in FORMATS.items() for quantize in ("none", *form.quantize)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[str, str]]:
    found = coloured(tmp_path_factory.mktemp("photos"), CLASSES, 12, 40)
    subsets = [*["train"] * 6, *["validation"] * 3, *["test"] * 3]
    return {path: (label, subsets[int(path.stem.rpartition("-")[2])]) for path, label in found.items()}


@pytest.fixture(scope="module")
def run(photos: dict[Path, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "run", layered(SIZE, CLASSES, 1), photos, right=5)


def exported(*words: object, code: int = 0) -> str:
    """What the command says last."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "console", lambda verbose: Console(file=printed, soft_wrap=True))
        found, text = cli.outcome(main, "python -m jobs.export", [str(word) for word in words])
    assert found == code, text
    assert "\n" not in text
    return text or printed.getvalue()


def record_of(out: Path) -> Export:
    return Export.model_validate_json((out / "export.json").read_text())


def example_says(out: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Labels and scores that the example prints."""
    monkeypatch.setattr(sys, "argv", ["example.py", str(photo)])
    with redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(out / "example.py"))
    lines = [line.rsplit("  ", 1) for line in printed.getvalue().splitlines()]
    return [(label, float(score)) for label, score in lines if label in CLASSES]


def labels_inside(name: str, network: Path) -> list[str]:
    """The labels that the network's own file holds."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(network)
        assert [value.type for value in session.get_inputs()] == ["tensor(uint8)"]
        return list(session.get_modelmeta().custom_metadata_map["labels"].split("\n"))
    if name == "openvino":
        import openvino

        info = openvino.Core().read_model(network).get_rt_info(["model_info", "labels"])
        return [label.replace("_", " ") for label in info.astype(str).split(" ")]
    if name == "saved_model":
        return (network / "assets" / "labels.txt").read_text().splitlines()
    with zipfile.ZipFile(network) as archive:
        return archive.read("labels.txt").decode().splitlines()


@pytest.mark.parametrize(("name", "quantize"), ALL, ids=["-".join(pair) for pair in ALL])
def test_every_format_answers_as_the_bundle_does(
    tmp_path: Path, run: Run, photos: dict[Path, tuple[str, str]], name: str, quantize: str, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    said = exported("--bundle", run.uri, "--format", name, "--quantize", quantize, "--to", out)
    record = record_of(out)
    assert record.agreement.n == 18
    assert record.photos == "18 test and validation photos of its run"
    assert record.agreement.top_class == 1
    assert record.agreement.largest_difference < {"none": 1e-5, "float16": 1e-2, "int8": 0.2}[quantize]
    assert (record.calibration is not None) == (quantize == "int8")
    assert record.runtime.split()[0] == FORMATS[name].runtime
    assert f"written   {out}" in said
    network = out / record.network
    assert labels_inside(name, network) == (out / "labels.txt").read_text().splitlines() == CLASSES
    assert all((out / path).is_file() for path in record.sha256)
    photo = next(iter(photos))
    (expected,) = Predictor(load_bundle(run.uri)).predict([photo.read_bytes()])
    assert isinstance(expected, Prediction)
    (label, score), *_ = example_says(out, photo, monkeypatch)
    assert label == expected.label
    assert score == pytest.approx(expected.score, abs={"none": 2e-4, "float16": 0.01, "int8": 0.2}[quantize])
    card = (out / "README.md").read_text()
    assert "5" in card
    for words in ("| Accuracy | ", "löwenzahn ☃", "## Licence", "18 test and validation photos", "(n = 9)"):
        assert words in card, words
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_speeds_are_of_networks_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is ten times slower after two turns, and once for a moment; the second network is half as fast."""
    now, asked = [0.0], list[tuple[str, int]]()
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def network(name: str, seconds: float) -> Any:
        def run(pixels: Any) -> Any:
            asked.append((name, len(pixels)))
            slow = 100 if len(asked) == 5 else 10 if len(asked) > 22 else 1
            now[0] += slow * seconds * len(pixels)
            return pixels[:, 0, 0, :1] * np.float32(seconds)

        return run

    advanced = list[int]()
    pixels = np.arange(41, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    runs = [network("a", 0.5), network("b", 1)]
    (first, second), paces = side_by_side(runs, pixels, 2, advanced.append)
    assert paces == pytest.approx([0.2, 0.1])
    assert [first[:, 0].tolist(), second[:, 0].tolist()] == [[0.5 * at for at in range(41)], list(range(41))]
    assert sum(advanced) == 82
    assert "".join(name for name, _ in asked) == "ab" + ("aaaaa" + "bbbbb") * 4 + "ab"
    assert {size for _, size in asked[:-2]} == {2}


def test_a_saved_model_takes_files_and_answers_as_our_server(tmp_path: Path, run: Run, photos: Any) -> None:
    import tensorflow as tf

    from serving.protocols.tensorflow_serving import INPUT, RowPrediction

    out = tmp_path / "flowers"
    exported("--bundle", run.uri, "--format", "saved_model", "--layout", "tensorflow-serving", "--to", out)
    signatures = tf.saved_model.load(str(out / "1")).signatures
    files = [path.read_bytes() for path in photos][:3]
    found = signatures["serve_bytes"](**{INPUT: tf.constant(files)})
    # Without what a server says with --unknown alone.
    assert found.keys() == {name for name, field in RowPrediction.model_fields.items() if field.is_required()}
    assert [[text.decode() for text in row] for row in found["classes"].numpy()] == [CLASSES] * 3
    expected = Predictor(load_bundle(run.uri)).predict(files)
    assert [text.decode() for text in found["label"].numpy()] == [answer.label for answer in expected]  # type: ignore[union-attr]
    np.testing.assert_allclose(found["score"].numpy(), found["scores"].numpy().max(axis=1))
    agreement = record_of(out).files_agreement
    assert agreement is not None
    assert agreement.top_class == 1
    assert "serve_bytes" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_tritons_layout(tmp_path: Path, run: Run, name: str) -> None:
    out = tmp_path / "flowers"
    exported("--bundle", run.uri, "--format", name, "--layout", "triton", "--to", out)
    assert (out / record_of(out).network).is_file()
    assert record_of(out).network == FORMATS[name].layouts["triton"]
    config = (out / "config.pbtxt").read_text()
    for words in ('name: "flowers"', "dims: [32, 32, 3]", "dims: [3]", 'label_filename: "labels.txt"'):
        assert words in config


def test_phones_find_the_labels(tmp_path: Path, run: Run) -> None:
    """The metadata says that labels.txt, at the end of the file, names the outputs."""
    from ai_edge_litert.tools import flatbuffer_utils

    exported("--bundle", run.uri, "--format", "litert", "--to", tmp_path / "out")
    model = flatbuffer_utils.read_model(str(tmp_path / "out" / "model.tflite"))
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    assert b"labels.txt" in data


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path, run: Run) -> None:
    out, words = tmp_path / "out", ("--bundle", run.bundle, "--format", "openvino", "--to", tmp_path / "out")
    out.mkdir()
    exported(*words)
    (out / "old").touch()
    exported(*words)
    assert not (out / "old").exists()
    (out / "export.json").unlink()
    before = sorted(out.iterdir())
    assert "--to: received" in exported(*words, code=2)
    assert sorted(out.iterdir()) == before
    (tmp_path / "file").touch()
    assert "required is a new folder" in exported(*words[:-1], tmp_path / "file", code=2)


def test_an_export_that_answers_otherwise_is_not_written(tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    from flowers.export import openvino

    runner = openvino.runner
    monkeypatch.setattr(openvino, "runner", lambda path: lambda pixels: 1 - runner(path)(pixels))
    words = ("--bundle", run.uri, "--format", "openvino", "--to", tmp_path / "new" / "out")
    text = exported(*words, code=3)
    assert "% of 18 top classes agree with the bundle, required are 100.0 %; nothing was written" in text
    assert list(tmp_path.iterdir()) == []
    exported(*words, "--min-agreement", 0)
    assert record_of(tmp_path / "new" / "out").agreement.top_class < 1


def test_photos_of_a_folder_and_drawn_ones(tmp_path: Path, run: Run, photos: Any) -> None:
    publish(load_bundle(run.uri), str(tmp_path / "flowers"), Record(run=str(tmp_path / "gone"), published="now"))
    words = ("--bundle", tmp_path / "flowers", "--format", "openvino", "--to", tmp_path / "out")
    assert "DRAWN pictures (no photos of its run are at hand" in exported(*words, "--min-agreement", 0)
    folder = next(iter(photos)).parent
    exported(*words, "--photos", folder)
    assert record_of(tmp_path / "out").photos == f"36 photos of {folder}"
    assert record_of(tmp_path / "out").bundle == str(tmp_path / "flowers" / "1")
    text = exported(*words, "--quantize", "int8", code=2)
    assert "no training photos of" in text
    assert "--calibration DIR" in text
    exported(*words, "--quantize", "int8", "--calibration", folder, "--photos", folder)
    assert record_of(tmp_path / "out").calibration == f"36 photos of {folder}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onnx", "--quantize", "int8"], "--quantize: received 'int8', required is none with"),
        (["--format", "litert", "--layout", "triton"], "--layout: received 'triton', required is plain with"),
        (["--format", "coreml"], "--format: received 'coreml', required is one of"),
        (["--format", "keras", "--photos", "{}/none"], "--photos: received"),
        (["--format", "keras", "--photos", "{}"], "a folder with photos in it"),
        (["--format", "keras", "--calibration", "{}"], "--calibration: received"),
        (["--format", "keras", "--bundle", "{}"], "there is no bundle at"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, run: Run, words: list[str], said: str) -> None:
    filled = [word.replace("{}", str(tmp_path)) for word in words]
    assert said in exported("--bundle", run.uri, "--to", tmp_path / "out", *filled, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_cure(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("tf2onnx", "nncf") else there(name))
    words = ("--bundle", run.uri, "--to", tmp_path / "out")
    assert "--format onnx: not installed: tf2onnx; pip install" in exported(*words, "--format", "onnx", code=2)
    assert "not installed: nncf; pip" in exported(*words, "--format", "openvino", "--quantize", "int8", code=2)
    exported(*words, "--format", "openvino")


def test_a_bundle_trained_in_bfloat16(tmp_path: Path, run: Run, photos: dict[Path, tuple[str, str]]) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in Path(run.bundle).iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["sha256"]
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "precision": "bfloat16"}))
    folder = os.path.commonpath(photos)  # not one above, which holds the pictures of other tests
    exported("--bundle", bundle, "--format", "onnx", "--to", tmp_path / "out", "--photos", folder)
    assert record_of(tmp_path / "out").agreement.top_class == 1


def test_agreement_counts_ties() -> None:
    expected = np.array([[0.5, 0.4999, 0.0001], [0.9, 0.1, 0]], np.float32)
    found = expected[:, [1, 0, 2]]
    agreement = Agreement.of(found, expected)
    assert (agreement.n, agreement.top_class) == (2, 0.5)
    assert agreement.largest_difference == pytest.approx(0.8)


def test_formats_are_those_of_the_option() -> None:
    assert get_args(ExportOptions.model_fields["format"].annotation) == tuple(FORMATS)


@pytest.mark.networks
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_networks_of_full_depth(tmp_path: Path, name: str, photos: Any) -> None:
    from flowers.bundle import save_bundle
    from flowers.model import classifier
    from flowers.model.backbones import build_backbone

    network = build_backbone("mobilenetv2", "random", 96, "bfloat16")
    depth = network.output.shape[-1]
    head = classifier.build_head(np.zeros(depth, np.float32), np.full(depth, 1e-4, np.float32), 3, 0.2)
    kernel = np.random.default_rng(0).normal(size=(depth, 3)).astype(np.float32)
    head.get_layer("logits").set_weights([kernel, np.zeros(3, np.float32)])
    manifest = {"classes": CLASSES, "image_size": 96, "backbone": "mobilenetv2", "versions": {"keras": "3"}}
    save_bundle(classifier.join(network, head), manifest, str(tmp_path / "bundle"))
    folder = next(iter(photos)).parent
    exported("--bundle", tmp_path / "bundle", "--format", name, "--to", tmp_path / "out", "--photos", folder)
    assert record_of(tmp_path / "out").agreement.top_class == 1
