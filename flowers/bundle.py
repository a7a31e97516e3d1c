"""The bundle: `model.keras` and `manifest.json`, the thing that is trained, evaluated, exported and served.

Loading takes a path and nothing else. The manifest is written last and holds the hash of every other file and its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass
from typing import Any

from flowers import storage
from flowers.data.images import DECODER_VERSION
from flowers.errors import DamagedFile, InputError, first_line
from flowers.runs import Run

SCHEMA = 1
MODEL, MANIFEST = "model.keras", "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        uri: where it lies.
        model: a `keras.Model` from uint8 [n, size, size, 3] RGB to probabilities float32 [n, K].
        manifest: what `manifest.json` says; `classes` names the K outputs in order.
    """

    uri: str
    model: Any
    manifest: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self.manifest["classes"])

    @property
    def image_size(self) -> int:
        """Height and width of the input, in pixels."""
        return int(self.manifest["image_size"])


def save_bundle(model: Any, manifest: dict[str, Any], uri: str) -> None:
    """Writes a bundle that appears whole or not at all.

    Args:
        model: the `keras.Model` to save.
        manifest: JSON-ready description; `schema`, `decoder_version`, `saved` (Unix time in seconds), `files` and
            `sha256`, the hash of all this, are added.
        uri: the bundle's folder; an earlier one is replaced.
    """
    folder = working_folder(uri)
    try:
        path = os.path.join(folder, MODEL)
        model.save(path)
        files = {MODEL: {"sha256": storage.file_sha256(path), "bytes": os.path.getsize(path)}}
        full = {
            "schema": SCHEMA,
            "decoder_version": DECODER_VERSION,
            "saved": int(time.time()),
            **manifest,
            "files": files,
        }
        full["sha256"] = _sha256(full)
        storage.write(os.path.join(folder, MANIFEST), json.dumps(full, indent=2).encode())
        storage.publish(folder, uri, last=MANIFEST)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(manifest: dict[str, Any]) -> str:
    """Hash of what a manifest says, whatever its layout."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return storage.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


def working_folder(uri: str) -> str:
    """A new local folder from which `storage.publish` to `uri` is one rename where that is possible."""
    if storage.is_remote(uri):
        return tempfile.mkdtemp(prefix="flowers-")
    folder = storage.join(storage.parent(storage.absolute(uri)), f".writing-{uuid.uuid4().hex}")
    os.makedirs(folder)  # not mkdtemp: what is published must be readable by whom the umask allows
    return folder


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
    absent = [name for name in ("decoder_version", "classes", "image_size", "files") if name not in manifest]
    if absent:
        raise DamagedFile(f"{uri}/{MANIFEST} lacks {', '.join(absent)}")
    if manifest["decoder_version"] != DECODER_VERSION:
        raise InputError(
            f"the bundle {uri!r} was trained with photo decoder {manifest['decoder_version']}, this version has "
            f"{DECODER_VERSION}: it would see other pixels than it was trained on; train it again"
        )
    # Bundles of the first versions have no hash of their own.
    if manifest.get("sha256", found := _sha256(manifest)) != found:
        raise DamagedFile(
            f"{uri}/{MANIFEST} was changed after it was saved: it says sha256 {manifest['sha256']}, not {found}"
        )
    classes = manifest["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DamagedFile(f"{uri}/{MANIFEST} has no list of names as classes: {classes!r:.80}")
    return manifest


def load_bundle(uri: str) -> Bundle:
    """Loads a bundle, or the best bundle of a run folder, after checking every hash.

    Raises:
        InputError: there is no bundle, or not one for this version.
        DamagedFile: a file does not have its recorded hash.
    """
    import keras

    best = Run(uri).bundle
    if not storage.exists(storage.join(uri, MANIFEST)) and storage.exists(storage.join(best, MANIFEST)):
        uri = best
    manifest = read_manifest(uri)
    with tempfile.TemporaryDirectory(prefix="flowers-") as scratch:
        path = storage.join(uri, MODEL)
        if storage.is_remote(uri):
            local = os.path.join(scratch, MODEL)
            with open(local, "wb") as file:
                file.write(storage.read(path))
            path = local
        path = storage.absolute(path)
        if not os.path.exists(path):
            raise DamagedFile(f"the bundle {uri} lacks {MODEL}")
        found, expected = storage.file_sha256(path), manifest["files"][MODEL]["sha256"]
        if found != expected:
            raise DamagedFile(f"the bundle {uri} is damaged: {MODEL} has sha256 {found}, its manifest says {expected}")
        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception as error:
            raise InputError(
                f"the bundle {uri} was saved by Keras {manifest['versions']['keras']} and cannot be loaded by "
                f"{keras.__version__}: {first_line(error)}"
            ) from error
    outputs, classes = model.output_shape[-1], manifest["classes"]
    if outputs != len(classes):
        raise DamagedFile(f"the bundle {uri} has {outputs} outputs, and its manifest names {len(classes)} classes")
    return Bundle(uri, model, manifest)
