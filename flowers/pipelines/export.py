"""Exporting: a bundle's network in another format, run by that format's own runtime before it appears."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs as pafs
from rich.console import Console

from flowers import storage
from flowers.bundle import LABELS, Bundle, labels_text, load_bundle
from flowers.config import ExportOptions
from flowers.data import decoding, images
from flowers.data.builtin.sample import draw_sample
from flowers.errors import BadImage, GateNotMet, InputError, first_line
from flowers.export import texts
from flowers.export.formats import FORMATS, Format, module
from flowers.export.record import Agreement, Export, side_by_side
from flowers.inference.engine import Photos
from flowers.options import wrong
from flowers.pipelines.origin import Origin, contents
from flowers.predictor import Predictor
from flowers.progress import progress_bar
from flowers.published import answering
from flowers.report.formatting import percent
from flowers.runs import now
from flowers.text import plain, several

RECORD = "export.json"
# Photos that an export is tried on, and photos that int8 is calibrated with, at most.
TRIED, CALIBRATING = 200, 100
_AGREEMENT = {"none": 1.0, "float16": 0.99, "int8": 0.95}
_CURES = {
    "none": "report this, with the backbone",
    "float16": "leave out --quantize",
    "int8": "calibrate with more photos, or others (--calibration)",
}


def export(options: ExportOptions, out: Console) -> Export:
    """Writes a network in another format, with an example, a model card and a record of how it did.

    Args:
        options: what, where and in which format.
        out: where it is said.

    Returns:
        What is in `export.json`.

    Raises:
        InputError: the options do not fit, a package is missing, or there are no photos.
        DamagedFile: the bundle is not what was saved.
        GateNotMet: the export answers otherwise than the bundle; nothing is written.
    """
    form = _form(options)
    made = module(options.format, options.quantize)
    uri = _free(options.to)
    origin = Origin(load_bundle(answering(storage.absolute(options.bundle))))
    tried = _photos_to_try(options, origin)
    calibrating = _photos_to_calibrate(options, origin)
    network = form.layouts.get(options.layout, form.file)
    with _workplace(uri) as folder, storage.enough_space(uri):
        path = os.path.join(folder, network)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        out.print(f"exporting {plain(origin.bundle.uri)} as {options.format}", highlight=False, markup=False)
        made.write(origin.bundle, path, options.quantize, calibrating.pixels if calibrating else None)
        hashes = {name: storage.file_sha256(os.path.join(folder, name)) for name in _files(folder)}
        record = Export(
            created=now(),
            format=options.format,
            quantize=options.quantize,
            layout=options.layout,
            network=network,
            bundle=origin.bundle.uri,
            bundle_sha256=origin.bundle.manifest.get("sha256", ""),
            classes=list(origin.bundle.classes),
            image_size=origin.bundle.image_size,
            takes=form.takes,
            gives=form.gives,
            bytes=sum(os.path.getsize(os.path.join(folder, name)) for name in hashes),
            sha256=hashes,
            photos=tried.what,
            calibration=calibrating.what if calibrating else None,
            runtime=f"{form.runtime} {form.version}",
            **_tried(made, path, origin, tried, out),
        )
        _say(record, out)
        _check(record, options.min_agreement)
        _write_texts(folder, record, made, origin, storage.name(uri))
        storage.publish(folder, uri, last=RECORD)
    out.print(f"written   {plain(uri)}", highlight=False, markup=False)
    return record


@contextmanager
def _workplace(uri: str) -> Iterator[str]:
    """A folder to fill and publish at `uri`, gone afterwards; if that fails, so is what was made for it."""
    with storage.no_empty_folders(uri):
        try:
            folder = storage.working_folder(uri)
        except OSError as error:
            raise InputError(f"--to: {uri} cannot be written: {error.strerror or error}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Taken:
    """Photos that were read and decoded: uint8 [n, size, size, 3], their files, and what they are."""

    def __init__(self, files: Iterator[bytes | BadImage], bundle: Bundle, what: str) -> None:
        self.files: list[bytes] = []
        decoded, bad = [], 0
        for data in files:
            try:
                if isinstance(data, BadImage):
                    raise data
                decoded.append(decoding.decode(data, bundle.image_size))
                self.files.append(data)
            except BadImage:
                bad += 1
        if not decoded:
            raise InputError(f"there is no usable photo among {what}; name a folder of photos: --photos, --calibration")
        self.pixels: Photos = np.stack(decoded)
        self.what = f"{len(decoded)} {what}" + (f" ({bad} more could not be read)" if bad else "")


def _photos_to_try(options: ExportOptions, origin: Origin) -> _Taken:
    if options.photos is not None:
        return _of_folder("photos", options.photos, TRIED, origin.bundle)
    known = origin.photos("test", "validation")
    if known.num_rows:
        found = contents(known.take(_spread(known.num_rows, TRIED)))
        try:
            return _Taken(found, origin.bundle, "test and validation photos of its run")
        except InputError:  # they are gone since
            pass
    with tempfile.TemporaryDirectory(prefix="flowers-") as folder:
        draw_sample(os.path.join(folder, "sample"), per_class=10)
        files = (path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg")))
        what = "DRAWN pictures (no photos of its run are at hand; --photos DIR takes real ones)"
        return _Taken(files, origin.bundle, what)


def _photos_to_calibrate(options: ExportOptions, origin: Origin) -> _Taken | None:
    if options.quantize != "int8":
        if options.calibration is not None:
            raise wrong("calibration", options.calibration, "--quantize int8 beside it: nothing else is calibrated")
        return None
    if options.calibration is not None:
        return _of_folder("calibration", options.calibration, CALIBRATING, origin.bundle)
    known = origin.photos("train")
    if not known.num_rows:
        raise InputError(
            f"--quantize int8: no training photos of {origin.bundle.uri} are known to calibrate with; give photos like "
            "them: --calibration DIR"
        )
    found = contents(known.take(_spread(known.num_rows, CALIBRATING)))
    return _Taken(found, origin.bundle, "training photos of its run")


def _of_folder(name: str, folder: str, most: int, bundle: Bundle) -> _Taken:
    """Photos of a folder and those below it, spread over all of them."""
    filesystem, path = storage.resolve(folder)
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise wrong(name, folder, f"a folder of photos ({first_line(error)})") from error
    paths = sorted(info.path for info in infos if os.path.splitext(info.path)[1].lower() in images.EXTENSIONS)
    if not paths:
        raise wrong(name, folder, "a folder with photos in it, or below it")

    def read() -> Iterator[bytes]:
        for index in _spread(len(paths), most):
            with filesystem.open_input_stream(paths[index]) as stream:
                yield stream.read()

    return _Taken(read(), bundle, f"photos of {folder}")


def _spread(count: int, most: int) -> Any:
    """At most so many indices of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _form(options: ExportOptions) -> Format:
    """The format, checked against the other options."""
    form = FORMATS[options.format]
    if options.quantize not in ("none", *form.quantize):
        allowed = " or ".join(("none", *form.quantize))
        raise wrong("quantize", options.quantize, f"{allowed} with --format {options.format}")
    if options.layout not in ("plain", *form.layouts):
        allowed = " or ".join(("plain", *form.layouts))
        raise wrong("layout", options.layout, f"{allowed} with --format {options.format}")
    return form


def _free(to: str) -> str:
    """A place that is free, or holds an earlier export."""
    uri = storage.absolute(to)
    try:
        taken = storage.exists(uri) and storage.names(uri) and not storage.exists(storage.join(uri, RECORD))
    except OSError:
        taken = True
    if taken:
        raise wrong("to", to, f"a new folder, or one of an earlier export (with {RECORD})")
    return uri


def _files(folder: str) -> list[str]:
    """Paths of all files below a local folder."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def _tried(made: Any, path: str, origin: Origin, tried: _Taken, out: Console) -> dict[str, Any]:
    """How the network at `path` does in its runtime, beside the bundle in float32."""
    reference = Predictor(Bundle(origin.bundle.uri, {**origin.bundle.manifest, "precision": "float32"}))
    with progress_bar(out, "both on photos", 2 * len(tried.pixels)) as advance:
        runs = [lambda pixels: reference.run(pixels)[0], made.runner(path)]
        (expected, found), paces = side_by_side(runs, tried.pixels, reference.largest_batch, advance)
    answers, at = [], []
    if hasattr(made, "bytes_runner"):
        run = made.bytes_runner(path)
        for index, data in enumerate(tried.files):
            try:
                answers.append(run([data])[0])
                at.append(index)
            except (ValueError, RuntimeError):
                continue
    return {
        "agreement": Agreement.of(found, expected),
        "files_agreement": Agreement.of(np.stack(answers), expected[at]) if answers else None,
        "not_decoded": len(tried.files) - len(at) if hasattr(made, "bytes_runner") else 0,
        "images_per_s": round(paces[1], 1),
        "bundle_images_per_s": round(paces[0], 1),
    }


def _say(record: Export, out: Console) -> None:
    agreement, decoded = record.agreement, record.files_agreement
    lines = [
        f"tried on  {record.photos}",
        f"          {percent(agreement.top_class)} of top classes agree, scores differ by at most "
        f"{agreement.largest_difference:.2g}",
    ]
    if decoded:
        lines.append(
            f"          decoded by TensorFlow: {percent(decoded.top_class)} of {decoded.n} agree, scores differ by at "
            f"most {decoded.largest_difference:.2g}"
        )
    if record.not_decoded:
        lines.append(f"          {several(record.not_decoded, 'photo')} TensorFlow cannot decode")
    lines += [
        f"speed     {record.images_per_s:.0f} images/s ({record.runtime}), the bundle {record.bundle_images_per_s:.0f}",
        f"size      {record.bytes / 1e6:.1f} MB",
    ]
    out.print("\n".join(map(plain, lines)), highlight=False, markup=False)


def _check(record: Export, least: float | None) -> None:
    required = _AGREEMENT[record.quantize] if least is None else least
    agreement = record.agreement
    if agreement.top_class < required:
        raise GateNotMet(
            f"--min-agreement: {percent(agreement.top_class)} of {agreement.n} top classes agree with the bundle, "
            f"required are {percent(required)}; nothing was written; allow less, or {_CURES[record.quantize]}"
        )


def _write_texts(folder: str, record: Export, made: Any, origin: Origin, name: str) -> None:
    manifest = origin.bundle.manifest
    card = texts.card(record, origin.report, manifest.get("start_weights", ""), manifest.get("backbone", ""))
    written = {
        LABELS: labels_text(record.classes),
        texts.EXAMPLE: texts.example(record, made.IMPORTS, made.CALL),
        texts.CARD: card,
    }
    if record.layout == "triton":
        written[texts.CONFIG] = texts.triton_config(record, name)
    written[RECORD] = record.model_dump_json(indent=2)
    for file, text in written.items():
        storage.write(os.path.join(folder, file), text.encode())
