"""Publishing: a bundle that is whole and good enough becomes the next version of a model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console

from flowers import published, storage
from flowers.bundle import MANIFEST, Bundle, load_bundle
from flowers.config import PublishOptions
from flowers.errors import BadImage, FlowersError, GateNotMet, InputError, few, first_line
from flowers.evaluation.paired import Paired
from flowers.options import check_folder
from flowers.pipelines.origin import Origin, contents
from flowers.predictor import Predictor
from flowers.progress import progress_bar
from flowers.report.formatting import interval, percent, value
from flowers.runs import Run, now
from flowers.text import plain, several
from flowers.tracking import Tracker

# Photos that are in memory at a time.
_CHUNK = 64
_REFUSED = "is refused by servers, which go on with what they have"


def publish(source: str, options: PublishOptions, out: Console) -> str:
    """Publishes the bundle of a run, or a bundle.

    Args:
        source: path or URI of the run or the bundle.
        options: where, and how good it has to be.
        out: where it is said what was measured.

    Returns:
        The URI of the new version.

    Raises:
        InputError: there is no bundle, no report or no photos to measure it on, no place for it, or no tracking store.
        DamagedFile: the bundle is not what was saved.
        GateNotMet: it is not good enough; nothing is written.
    """
    folder = _model(options.to)
    if not published.versions(folder):
        numbers = [name for name in storage.names(folder) if name.isdecimal()]  # of versions that are not whole
        check_folder("--to", folder, numbers, "model of this program")
    origin = Origin(load_bundle(storage.absolute(source)))
    predictor = Predictor(origin.bundle, origin.max_pixels)  # what cannot be loaded here is not published
    predictor.warm()
    report = origin.report
    tracker = Tracker(options.mlflow, storage.name(folder)) if options.mlflow else None
    if options.min_accuracy is not None:
        _check_accuracy(origin, options.min_accuracy, out)
    if options.not_worse_than is not None:
        _check_not_worse(origin, predictor, options.not_worse_than, folder, out)
    record = published.Record(
        run=origin.run.uri if origin.run else origin.bundle.uri,
        published=now(),
        accuracy=report.test.accuracy if report else None,
    )
    try:
        number = published.publish(origin.bundle, folder, record)
    except OSError as error:
        raise InputError(f"--to: {folder} cannot be written: {error.strerror or error}") from error
    out.print(f"published {plain(folder)}/{number}", highlight=False, markup=False)
    if (pinned := published.pinned(folder)) is not None:
        out.print(f"version {pinned} is pinned: {number} answers after --unpin or --pin {number}", highlight=False)
    version = storage.join(folder, str(number))
    if tracker:
        logged = tracker.log(origin.bundle, number, version, origin.run, report)
        out.print(f"logged    {plain(tracker.uri)}: {plain(logged)}", highlight=False, markup=False)
    return version


def choose(options: PublishOptions, out: Console) -> int:
    """Lets another version answer: `--rollback`, `--pin` or `--unpin`.

    Returns:
        The number of the version that is wanted now.

    Raises:
        InputError: there is no such version.
    """
    folder, found = _found(options.to)
    number = options.pin
    if options.rollback:
        current = published.wanted(found)
        before = [number for number in sorted(found, reverse=True) if number < current]
        number = next((number for number in before if _damage(found[number]) is None), None)
        if number is None:
            what = "all versions before it are damaged" if before else "there is none before it"
            raise InputError(f"--rollback: version {current} answers, and {what}")
    if number is not None and (damage := _damage(found[number]) if number in found else None):
        raise InputError(f"--pin: version {number} cannot answer: {damage}")
    try:
        published.pin(found, number)
    except OSError as error:
        raise InputError(f"--to: {folder} cannot be written: {error.strerror or error}") from error
    wanted = published.wanted(found)
    pinned = "pinned" if number is not None else "the newest"
    damage = _damage(found[wanted])
    answers = "answers" if damage is None else _REFUSED
    out.print(
        f"version {wanted} of {plain(folder)} {answers}: {plain(damage or pinned)}", highlight=False, markup=False
    )
    return wanted


def describe(options: PublishOptions) -> list[str]:
    """A line on each version of a model, ascending; every file of them is checked.

    Raises:
        InputError: there are none.
    """
    folder, found = _found(options.to)
    pinned = published.pinned(folder)
    lines = []
    for number, uri in found.items():
        record, said = published.read_record(uri), list[str]()
        damage = _damage(uri)
        if damage is None:
            manifest = load_bundle(uri).manifest
            said += [
                record.published if record else f"saved {manifest.get('saved', '?')}",
                several(len(manifest["classes"]), "class", "classes"),
            ]
        if record and record.accuracy:
            accuracy = record.accuracy
            said.append(f"test {value(accuracy, True)} ({interval(accuracy, True)}, n = {accuracy.n})")
        said.append(f"from {record.run}" if record else "copied by hand")
        if number == (max(found) if pinned is None else pinned):
            answers = "answers" if damage is None else _REFUSED
            said.append(answers if pinned is None else f"pinned: {answers}")
        if damage is not None:
            said.append(f"UNUSABLE: {damage}")
        lines.append(plain(f"{number:>4}  {'  '.join(said)}"))
    if pinned is not None and pinned not in found:
        lines.append(f"version {pinned} is pinned and not there: servers go on with what they have")
    return lines


def _model(to: str) -> str:
    """The folder of a model, checked to be one or to be free.

    Raises:
        InputError: something else is there.
    """
    folder = storage.absolute(to)
    what = None
    if storage.exists(storage.join(folder, MANIFEST)):
        what = "a bundle"
    elif storage.exists(Run(folder).config):
        what = "a run"
    else:
        try:
            names = [name for name in storage.names(folder) if name[0] != "." and not name.isdecimal()]
        except OSError as error:
            raise InputError(f"--to: {folder} cannot be read: {error.strerror or first_line(error)}") from error
        if models := [name for name in names if published.versions(storage.join(folder, name))]:
            what = f"a folder of models: {few(models)}"
    if what:
        raise InputError(f"--to: received {to!r}, which is {what}; required is MODELS/NAME")
    return folder


def _found(to: str) -> tuple[str, dict[int, str]]:
    folder = _model(to)
    found = published.versions(folder)
    if not found:
        raise InputError(f"--to: there is no version in {folder!r}; publish one: python -m jobs.publish RUN --to {to}")
    return folder, found


def _whole(uri: str) -> Bundle:
    """A bundle all of whose files were read and checked, also in an object store."""
    bundle = load_bundle(uri)
    with bundle.local_files(*bundle.manifest["files"]):
        return bundle


def _damage(uri: str) -> str | None:
    """What is wrong with a bundle."""
    try:
        _whole(uri)
    except FlowersError as error:
        return first_line(error)
    return None


def _check_accuracy(origin: Origin, least: float, out: Console) -> None:
    report = origin.report
    if report is None:
        raise InputError(
            f"--min-accuracy: there is no report on the bundle {origin.bundle.uri}; publish a finished run, or leave "
            "it out"
        )
    accuracy = report.test.accuracy
    said = f"test accuracy {value(accuracy, True)} ({interval(accuracy, True)}, n = {accuracy.n})"
    out.print(f"{said}, at least {percent(least)} required", highlight=False)
    if accuracy.low is None or accuracy.low < least:
        raise GateNotMet(
            f"--min-accuracy: {said}: the lower end of the interval has to be {percent(least)}; nothing was published; "
            "train better, or test on more photos (--split)"
        )


def _check_not_worse(origin: Origin, predictor: Predictor, than: str, folder: str, out: Console) -> None:
    """Lets both bundles classify the run's test photos."""
    uri = published.answering(storage.absolute(than))
    if uri == folder:
        out.print("there is no version yet that it could be worse than", highlight=False)
        return
    old = Origin(load_bundle(uri))
    photos = origin.photos("test")
    if not photos.num_rows:
        raise InputError(
            f"--not-worse-than: no test photos of the bundle {origin.bundle.uri} are known: its run is gone or tested "
            "none; publish a finished run, or leave it out"
        )
    other = Predictor(old.bundle, origin.max_pixels)
    labels = photos["label"].to_pylist()
    right: tuple[list[bool], list[bool]] = [], []
    with progress_bar(out, "test photos, both bundles", photos.num_rows) as advance:
        for start in range(0, photos.num_rows, _CHUNK):
            chunk = photos.slice(start, _CHUNK)
            pixels = _decoded(chunk, (predictor, other))
            for index, judge in enumerate((predictor, other)):
                answers = judge.run(pixels[judge.bundle.image_size])[0].argmax(axis=1)
                named = [judge.bundle.classes[answer] for answer in answers]
                right[index].extend(
                    found == label for found, label in zip(named, labels[start : start + _CHUNK], strict=True)
                )
            advance(chunk.num_rows)
    paired = Paired.of(np.array(right[0]), np.array(right[1]))
    said = (
        f"{several(paired.n, 'test photo')}: the new one has {paired.new_right} right, {uri} {paired.old_right}; "
        f"{paired.gained} gained, {paired.lost} lost (p = {paired.p_worse:.3f} that chance alone loses as many)"
    )
    out.print(said, highlight=False, markup=False)
    out.print(_seen_before(photos["sha256"].to_pylist(), old), highlight=False, markup=False)
    if unknown := sorted(set(labels) - set(old.bundle.classes)):
        out.print(f"the old one does not know {plain(', '.join(unknown))}: wrong there", highlight=False, markup=False)
    if paired.worse:
        raise GateNotMet(f"--not-worse-than: worse on {said}; nothing was published")
    if paired.n < 10 * paired.least_loss:
        out.print(
            f"so few photos say little: a loss of fewer than {paired.least_loss} is not told from chance",
            highlight=False,
        )


def _decoded(photos: pa.Table, judges: tuple[Predictor, ...]) -> dict[int, npt.NDArray[np.uint8]]:
    """The pixels of photos, uint8 [n, size, size, 3], by the sizes that are wanted: decoded once for each."""
    sizes = {judge.bundle.image_size: judge for judge in judges}
    pixels: dict[int, list[npt.NDArray[np.uint8]]] = {size: [] for size in sizes}
    for index, photo in enumerate(contents(photos)):
        try:
            if isinstance(photo, BadImage):
                raise photo
            for size, judge in sizes.items():
                pixels[size].append(judge.decode(photo))
        except BadImage as error:
            path = photos["path"][index].as_py()
            raise InputError(f"--not-worse-than: the test photo {path} cannot be read any more: {error}") from error
    return {size: np.stack(found) for size, found in pixels.items()}


def _seen_before(digests: list[bytes], old: Origin) -> str:
    """How many photos the old bundle was trained on, which flatters it."""
    if old.report is None:
        return "whether the old one was trained on some of them is not known: its run is gone"
    train = set(old.photos("train")["sha256"].to_pylist())
    seen = sum(digest in train for digest in digests)
    return f"{seen} of them the old one was trained on" + (", which flatters it" if seen else "")
