"""The bundle: the folder that is trained, evaluated, exported and served.

Its files: model.keras, for Keras; network.xml and network.bin, the same network for the inference engine; labels.txt,
a class a line; typicality.bin, by which photos of other things are told; manifest.json, which is written last and holds
the hash of every other file and its own.

Loading takes a path and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from flowers import storage
from flowers.data.images import CHANGES, DECODER_VERSION
from flowers.errors import DamagedFile, FlowersError, InputError, first_line
from flowers.inference.engine import CPU_BATCH, Engine, Photos, usable_cpus
from flowers.runs import Run
from flowers.text import plain, several
from flowers.typicality import Typicality

SCHEMA = 1
MODEL, LABELS, TYPICALITY, MANIFEST = "model.keras", "labels.txt", "typicality.bin", "manifest.json"

# How far a score of the engine may be from Keras' own: other kernels round otherwise.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
# Photos that Keras computes at once, outside of any graph: the fewer calls, the less waits for Python.
_KERAS_BATCH = 16


class _File(BaseModel, strict=True):
    """What a manifest says of a file of its bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(default=0, ge=0)  # bundles of the first versions do not say


class _Manifest(BaseModel, strict=True):
    """What a manifest has to be, whoever wrote it; it may hold more. No name in it leads out of the bundle."""

    decoder_version: str
    classes: list[str] = Field(min_length=1)
    image_size: int = Field(ge=1, le=4096)
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], _File] = Field(min_length=1)
    folder: str = Field(default="", pattern="^(files-[0-9a-f]{16})?$")
    precision: Literal["float32", "bfloat16"] = "float32"
    saved: int = Field(default=1, ge=0)
    check: list[list[float]] | None = None


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; the network is loaded when it is asked for.

    Attributes:
        uri: where it lies.
        manifest: what `manifest.json` says; `classes` names the K outputs in order.
    """

    uri: str
    manifest: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self.manifest["classes"])

    @property
    def image_size(self) -> int:
        """Height and width of the input, in pixels."""
        return int(self.manifest["image_size"])

    @property
    def precision(self) -> str:
        """What the network computes in: "float32" or "bfloat16"."""
        return str(self.manifest.get("precision", "float32"))

    @property
    def sha256(self) -> str:
        """Hash of what its manifest says, which holds the hashes of its files: the same wherever it lies."""
        return str(self.manifest.get("sha256") or _sha256(self.manifest))

    @property
    def size(self) -> int:
        """Bytes of its files, as the manifest says."""
        return sum(int(file.get("bytes", 0)) for file in self.manifest["files"].values())

    def check(self, engine: Engine) -> None:
        """Asks the compiled network about the pictures whose probabilities were stored when the bundle was saved.

        Raises:
            DamagedFile: it answers otherwise.
        """
        if "check" not in self.manifest:  # of an earlier version
            return
        expected, found = np.array(self.manifest["check"]), engine(check_pictures(self.image_size))[0]
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else math.inf
        if not difference <= _TOLERANCE[self.precision]:
            raise DamagedFile(
                f"the bundle {self.uri} answers otherwise than when it was saved: probabilities of the pictures that "
                f"it is checked with differ by {difference:.2g}, allowed are {_TOLERANCE[self.precision]:g}"
            )

    @cached_property
    def model(self) -> Any:
        """The `keras.Model` from uint8 [n, size, size, 3] RGB to probabilities float32 [n, K].

        Raises:
            InputError: this version of Keras cannot load it.
            DamagedFile: its file does not have its recorded hash.
        """
        import keras

        with self.local_files(MODEL) as folder:
            try:
                model = keras.saving.load_model(os.path.join(folder, MODEL), compile=False)
            except Exception as error:
                raise InputError(
                    f"the bundle {self.uri} was saved by Keras {self.manifest['versions']['keras']} and cannot be "
                    f"loaded by {keras.__version__}: {first_line(error)}"
                ) from error
        self._check_outputs(model.output_shape[-1])
        return model

    def engine(self, name: str, *, sizes: Sequence[int], threads: int, features: bool = False) -> Engine:
        """The network compiled for this machine.

        Its outputs are probabilities float32 [n, K], heat [n, h, w] and the pooled features [n, d]; these are missing
        in the files of earlier versions.

        Args:
            name: of the engine, "openvino" or "tensorflow".
            sizes: of the batches, ascending (`flowers.inference.engine.Engine`).
            threads: that OpenVINO computes with.
            features: whether features are needed: the network of an earlier version is then converted again.

        Raises:
            InputError: it cannot be loaded.
            DamagedFile: a file does not have its recorded hash, or the number of outputs is not that of the classes.
        """
        if name == "tensorflow":
            from flowers.inference.tensorflow_engine import TensorFlowEngine
            from flowers.model.heatmap import explained

            return TensorFlowEngine(explained(self.model), self.image_size, sizes)
        from flowers.inference.openvino_engine import OpenVINOEngine

        with self.network(features) as folder:
            engine = OpenVINOEngine(folder, sizes, self.precision, threads)
        self._check_outputs(engine.outputs[0][0])
        return engine

    @contextmanager
    def network(self, features: bool = False) -> Iterator[str]:
        """A local folder with the network for OpenVINO, checked; gone afterwards.

        Args:
            features: whether it has to give features.

        Raises:
            InputError: it has to be converted, and cannot be loaded.
            DamagedFile: a file does not have its recorded hash.
        """
        from flowers.inference.openvino_engine import NETWORK

        if self.converted and (TYPICALITY in self.manifest["files"] or not features):
            with self.local_files(*NETWORK) as folder:
                yield folder
            return
        from flowers.inference.conversion import convert
        from flowers.model.heatmap import explained

        logging.getLogger(__name__).warning("%s is of an earlier version: its network is converted now", self.uri)
        with tempfile.TemporaryDirectory(prefix="flowers-") as folder:
            convert(self.model, explained, self.image_size, folder)
            yield folder

    def typicality(self, unknown: float = 1.0) -> Typicality:
        """What tells photos of other things than the classes.

        Args:
            unknown: share of photos of the classes that may be taken for none of them.

        Raises:
            InputError: the bundle lacks it, or was validated on too few photos for this share.
            DamagedFile: the file is not what was saved.
        """
        if TYPICALITY not in self.manifest["files"]:
            raise InputError(
                f"--unknown: the bundle {self.uri} has no {TYPICALITY}, as it is of an earlier version; train it again "
                "with this one (the same command with --fresh), or leave out --unknown"
            )
        with self.local_files(TYPICALITY) as folder, open(os.path.join(folder, TYPICALITY), "rb") as file:
            data = file.read()
        try:
            found = Typicality.from_bytes(data, len(self.classes))
        except ValueError as error:
            raise DamagedFile(f"{self.uri}/{TYPICALITY} is none of a bundle: {error}") from error
        if unknown < found.least:
            least = math.ceil(1000 * found.least) / 1000
            raise InputError(
                f"--unknown: received {unknown:g}, required is {least:g} or more for the bundle {self.uri}: it was "
                f"validated on {several(found.validated, 'photo')}, among which a smaller share is none"
            )
        return found

    @property
    def converted(self) -> bool:
        """Whether the engine's files are there; bundles of the first versions have only the Keras model."""
        return any(name not in (MODEL, LABELS) for name in self.manifest["files"])

    def local_files(self, *names: str) -> Any:
        """A context with a local folder that holds these files, checked."""
        recorded = self.manifest["files"]
        absent = [name for name in names if name not in recorded]
        if absent:
            raise DamagedFile(f"{self.uri}/{MANIFEST} does not say what {absent[0]} is")
        return storage.local_files(self._place, {name: recorded[name]["sha256"] for name in names})

    @property
    def _place(self) -> str:
        """The folder of its files: its own, or one in it, where an object store had an earlier bundle."""
        inner = self.manifest.get("folder")
        return storage.join(self.uri, inner) if inner else self.uri

    def _check_sizes(self) -> None:
        found = {entry.name: entry.size for entry in storage.entries(self._place)}
        for name, recorded in self.manifest["files"].items():
            size = recorded.get("bytes", found.get(name))
            if size is None or found.get(name) != size:
                raise DamagedFile(f"{self._place} has {found.get(name, 'no')} bytes of {name}, not {size}")

    def _check_outputs(self, outputs: int) -> None:
        if outputs != len(self.classes):
            raise DamagedFile(
                f"the bundle {self.uri} has {several(outputs, 'output')}, and its manifest names "
                f"{several(len(self.classes), 'class', 'classes')}"
            )


def save_bundle(
    model: Any,
    manifest: dict[str, Any],
    uri: str,
    photos: Photos | None = None,
    typicality: Typicality | None = None,
) -> str:
    """Writes a bundle that appears whole or not at all. Its network is in float32, whatever it was trained in.

    Args:
        model: the `keras.Model` to save, as `flowers.model.classifier.join` returns it.
        manifest: JSON-ready description; `schema`, `decoder_version`, `saved` (when, UTC, as the number YYYYMMDDHHMMSS;
            it grows each time), `files`, `check` (what it says of `check_pictures`) and `sha256`, the hash of all this,
            are added. Its `precision` is what the engine computes in.
        uri: the bundle's folder; an earlier one is replaced.
        photos: uint8 [n, size, size, 3], on which Keras and the engine's files have to agree.
        typicality: of the features that this model gives its head.

    Returns:
        The precision that the bundle has: float32 also if bfloat16 was wanted, but rounds too much here.

    Raises:
        FlowersError: Keras and the engine do not agree; nothing is written.
    """
    from flowers.inference.conversion import convert, in_float32, weights_bytes
    from flowers.inference.openvino_engine import NETWORK
    from flowers.model.heatmap import explained

    plain, precision = in_float32(model), manifest.get("precision", "float32")
    drawn = check_pictures(manifest["image_size"])
    shown = drawn if photos is None else np.concatenate([drawn, photos])
    folder, beside_it = storage.working_folder(uri), ThreadPoolExecutor(1)
    try:
        answers = beside_it.submit(_answers, plain, shown)  # computed while Python works on the files
        labels = labels_text(manifest["classes"])
        with storage.says_why(folder, weights_bytes(plain)):
            plain.save(os.path.join(folder, MODEL))
        with zipfile.ZipFile(os.path.join(folder, MODEL), "a") as archive:  # which Keras leaves alone
            archive.writestr(LABELS, labels)
        storage.write(os.path.join(folder, LABELS), labels.encode())
        convert(plain, explained, manifest["image_size"], folder)
        expected = answers.result()
        if photos is not None:
            precision = _agreed_precision(expected, folder, precision, shown)
        names = [MODEL, *NETWORK, LABELS]
        if typicality is not None:
            storage.write(os.path.join(folder, TYPICALITY), typicality.to_bytes())
            names.append(TYPICALITY)
        paths = {name: os.path.join(folder, name) for name in names}
        full = {
            "schema": SCHEMA,
            "decoder_version": DECODER_VERSION,
            "saved": max(int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), saved(uri) + 1),
            **manifest,
            "precision": precision,
            "check": expected[: len(drawn)].round(6).tolist(),
            "files": {
                name: {"sha256": storage.file_sha256(path), "bytes": os.path.getsize(path)}
                for name, path in paths.items()
            },
        }
        beside = ""
        if storage.is_remote(uri) and storage.exists(storage.join(uri, MANIFEST)):  # which stays whole meanwhile
            full["folder"] = beside = f"files-{_sha256(full)[:16]}"
        full["sha256"] = _sha256(full)
        storage.write(os.path.join(folder, MANIFEST), json.dumps(full, indent=2).encode())
        storage.publish(folder, uri, last=MANIFEST, beside=beside)
    finally:
        beside_it.shutdown(cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)
    return precision


def _answers(model: Any, photos: Photos) -> npt.NDArray[np.float32]:
    """What Keras says of photos, float32 [n, K], a few at a time."""
    parts = [photos[start : start + _KERAS_BATCH] for start in range(0, len(photos), _KERAS_BATCH)]
    return np.concatenate([np.asarray(model(part, training=False)) for part in parts])


def _agreed_precision(expected: npt.NDArray[np.float32], folder: str, precision: str, photos: Photos) -> str:
    """The precision in which the files in `folder` say of some photos what Keras does."""
    from flowers.inference.openvino_engine import OpenVINOEngine

    size, threads = min(len(photos), CPU_BATCH), usable_cpus()
    for tried in dict.fromkeys((precision, "float32")):
        tolerance = _TOLERANCE[tried]
        found = OpenVINOEngine(folder, (size,), tried, threads)(photos)[0]
        difference = float(np.abs(found - expected).max())
        # Two classes of nearly the same score may change places: that is no other answer than Keras gives.
        highest = np.sort(expected, axis=1)[:, -2:]
        clear = highest[:, 1] - highest[:, 0] > tolerance
        others = int((found.argmax(axis=1) != expected.argmax(axis=1))[clear].sum())
        if difference <= tolerance and others <= len(photos) / 1000:
            return tried
    raise FlowersError(
        f"the converted network answers otherwise than the trained one: of {len(photos)} photos {others} have another "
        f"class and scores differ by up to {difference:.2g}, allowed are {tolerance:g}; the bundle is not saved; "
        "please report this, with the backbone"
    )


def _sha256(manifest: dict[str, Any]) -> str:
    """Hash of what a manifest says, whatever its layout."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return storage.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of a bundle, checked to be one this version understands.

    Raises:
        InputError: there is no bundle, or it needs another version of the decoder.
        DamagedFile: the manifest is not what was written.
    """
    try:
        manifest = json.loads(storage.read(storage.join(uri, MANIFEST)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no bundle at {uri!r}: {MANIFEST} is missing") from error
    except ValueError as error:
        raise DamagedFile(f"{uri}/{MANIFEST} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise InputError(f"the bundle {uri!r} has an unknown schema, required is {SCHEMA}")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        found, *_ = error.errors(include_url=False)
        place = plain(".".join(map(str, found["loc"])))
        raise DamagedFile(f"{uri}/{MANIFEST} is none of a bundle: {place:.80}: {found['msg']}") from error
    if manifest["decoder_version"] not in ("1", *CHANGES):
        raise InputError(
            f"the bundle {uri!r} was trained with photo decoder {plain(manifest['decoder_version'])}, this version has "
            f"{DECODER_VERSION}: it would see other pixels than it was trained on; train it again"
        )
    # Bundles of the first versions have no hash of their own.
    if manifest.get("sha256", actual := _sha256(manifest)) != actual:
        raise DamagedFile(
            f"{uri}/{MANIFEST} was changed after it was saved: it says sha256 {manifest['sha256']!s:.80}, not {actual}"
        )
    return manifest


def labels_text(classes: Sequence[str]) -> str:
    """What labels.txt holds: a class a line, whatever its name."""
    return "".join(" ".join(str(name).splitlines()) + "\n" for name in classes)


def check_pictures(size: int) -> npt.NDArray[np.uint8]:
    """Drawn pictures, the same for ever, with which a loaded network is checked: uint8 [4, size, size, 3]."""
    rng = np.random.Generator(np.random.PCG64(0))
    squares = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    index = np.arange(size) * 8 // size
    return np.ascontiguousarray(squares[:, index][:, :, index])


def load_bundle(uri: str, max_bytes: int | None = None) -> Bundle:
    """Opens a bundle, or the best bundle of a run folder.

    Hashes are checked: of local files now, of those in an object store when they are fetched; their sizes now.

    Args:
        uri: of the bundle, or the run.
        max_bytes: of all of its files together; None for any number.

    Raises:
        InputError: there is no bundle, not one for this version, or one of too many bytes.
        DamagedFile: a file is not what was written.
    """
    best = Run(uri).bundle
    if not storage.exists(storage.join(uri, MANIFEST)) and storage.exists(storage.join(best, MANIFEST)):
        uri = best
    found = Bundle(uri, read_manifest(uri))
    if max_bytes is not None and found.size > max_bytes:
        raise InputError(f"the bundle {uri!r} has {found.size} bytes; at most {max_bytes} are taken")
    if storage.is_remote(uri):
        found._check_sizes()
    else:
        with found.local_files(*found.manifest["files"]):
            pass
    return found


def saved(uri: str) -> int:
    """When the bundle at `uri` was saved, as its manifest has it; 0 if that does not say, or there is none.

    It is the number of its version: YYYYMMDDHHMMSS in UTC, of earlier versions of this program Unix time in seconds.
    """
    try:
        return int(json.loads(storage.read(storage.join(uri, MANIFEST))).get("saved", 0))
    except (OSError, ValueError, AttributeError, TypeError):
        return 0
