"""Published bundles: `MODELS/NAME/<number>/`, as TensorFlow Serving lays models out, and which of them answers.

Beside the numbers may lie a file `pinned`: who wrote a number into it wants that version, not the newest.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from pydantic import BaseModel, ValidationError

from flowers import storage
from flowers.bundle import MANIFEST, Bundle, load_bundle, saved
from flowers.errors import DamagedFile, InputError
from flowers.evaluation.metrics import Metric
from flowers.runs import Run

PINNED, RECORD = "pinned", "published.json"


class Record(BaseModel, frozen=True):
    """Where a version came from; it lies beside its bundle and is no part of it.

    Attributes:
        run: URI of the run, or of the bundle, that was published.
        published: when, ISO 8601.
        accuracy: of the bundle on the run's test photos; None where there is no report.
    """

    run: str
    published: str
    accuracy: Metric | None = None


def find(source: str, name: str, known: Collection[str] = ()) -> dict[int, str]:
    """The bundles of a source: their URIs by version, ascending.

    A run folder or a bundle is one version, numbered by the time it was saved. A folder of models has a sub-folder a
    number, as for TensorFlow Serving; one without a manifest is still being written and does not count.

    Args:
        source: path or URI.
        name: of the model.
        known: bundles of this source that were found before: they are not opened again.

    Raises:
        InputError: there is none.
    """
    for folder in (source, Run(source).bundle):
        if storage.exists(storage.join(folder, MANIFEST)):
            return {max(1, saved(folder)): folder}  # what is wrong with it is said when it is loaded
    for folder in (storage.join(source, name), source):
        if found := versions(folder, known):
            return found
    raise InputError(
        f"there is nothing to serve at {source!r}; required is a run folder, a bundle, or a folder with "
        f"{name}/<number>/ bundles"
    )


def versions(folder: str, known: Collection[str] = ()) -> dict[int, str]:
    """The complete bundles of the folder of one model: their URIs by number, ascending; see `find`."""
    found = {number: storage.join(folder, str(number)) for number in sorted(_numbers(folder))}
    return {number: uri for number, uri in found.items() if uri in known or storage.exists(storage.join(uri, MANIFEST))}


def folder_of(found: Mapping[int, str]) -> str | None:
    """Where numbered versions lie; None for a run or a bundle, which is one version."""
    number, uri = next(iter(found.items()))
    return storage.parent(uri) if storage.name(uri) == str(number) else None


def pinned(folder: str) -> int | None:
    """The version that is pinned, None if none is.

    Raises:
        InputError: the file holds something else than a number.
    """
    uri = storage.join(folder, PINNED)
    if not storage.exists(uri):
        return None
    text = storage.read(uri).decode(errors="replace").strip()
    if not text.isdecimal():
        raise InputError(f"{uri} says {text[:20]!r}, required is the number of a version")
    return int(text)


def answering(uri: str) -> str:
    """The bundle that is meant by the folder of a model: its version that should answer; other URIs mean themselves.

    Raises:
        InputError: that version is not there.
    """
    found = versions(uri)
    return found[wanted(found)] if found else uri


def wanted(found: Mapping[int, str], number: int | None = None) -> int:
    """The version that should answer: `number`, or the one that is pinned, or the newest.

    Raises:
        InputError: it is not there.
    """
    folder = folder_of(found)
    if number is None and folder is not None:
        number = pinned(folder)
    if number is not None and number not in found:
        raise InputError(f"version {number} is wanted and not there, only {_listed(found)}")
    return max(found) if number is None else number


def pin(found: Mapping[int, str], number: int | None) -> None:
    """Says which version all servers of these versions should take; None: the newest.

    Raises:
        InputError: there are no numbered versions, or not this one.
        OSError: the folder cannot be written.
    """
    folder = folder_of(found)
    if folder is None:
        raise InputError(f"{next(iter(found.values()))} has one version only: there is nothing to choose")
    if number is None:
        storage.delete_file(storage.join(folder, PINNED))
    elif number in found:
        storage.write(storage.join(folder, PINNED), str(number).encode())
    else:
        raise InputError(f"version {number} is not there, only {_listed(found)}")


def publish(bundle: Bundle, folder: str, record: Record) -> int:
    """Copies a bundle to the next number of a model's folder, where it appears whole or not at all.

    On a local disk two publishers never take the same number: a folder is renamed to a free one, or not at all. An
    object store has no such step: there, who publishes a model must be alone.

    Args:
        bundle: to copy.
        folder: of the model, MODELS/NAME; made if it is not there.
        record: to lie beside it.

    Returns:
        The number.

    Raises:
        DamagedFile: a file of the bundle is not what was saved.
    """
    with storage.no_empty_folders(folder), _copied(bundle, folder) as copy:
        storage.write(storage.join(copy, RECORD), record.model_dump_json(indent=2).encode())
        while True:
            number = max(_numbers(folder), default=0) + 1
            uri = storage.join(folder, str(number))
            if storage.is_remote(folder):
                storage.publish(copy, uri, last=MANIFEST)
                return number
            try:
                storage.publish_new(copy, uri)
            except FileExistsError:  # somebody else took the number meanwhile
                continue
            return number


def read_record(uri: str) -> Record | None:
    """What is noted of a published bundle; None where there is nothing, as for one that was copied by hand."""
    try:
        return Record.model_validate_json(storage.read(storage.join(uri, RECORD)))
    except (OSError, ValidationError):
        return None


def run_of(bundle: Bundle) -> Run | None:
    """The run that a bundle came from: the folder it lies in, or the one it was published from; None if it is gone."""
    record = read_record(bundle.uri)
    run = Run(storage.parent(bundle.uri) if record is None else record.run)
    return run if storage.exists(run.config) and storage.exists(run.split) else None


@contextmanager
def _copied(bundle: Bundle, folder: str) -> Iterator[str]:
    """A checked copy of the files of a bundle, on the disk, in a working folder beside where it is going to be."""
    storage.make_folder(folder)
    copy = storage.working_folder(storage.join(folder, "new"))
    names = list(bundle.manifest["files"])
    try:
        with storage.enough_space(folder), bundle.local_files(*names) as source:
            for name in names:
                storage.write(storage.join(copy, name), storage.read(storage.join(source, name)))
            storage.write(storage.join(copy, MANIFEST), storage.read(storage.join(bundle.uri, MANIFEST)))
        if load_bundle(copy).manifest != bundle.manifest:
            raise DamagedFile(f"{bundle.uri} was replaced by another bundle while it was copied")
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _numbers(folder: str) -> list[int]:
    """Numbers that are taken, also by what is not complete."""
    try:
        return [int(entry) for entry in storage.names(folder) if entry.isascii() and entry.isdecimal()]
    except NotADirectoryError:
        return []


def _listed(found: Mapping[int, str]) -> str:
    return ", ".join(map(str, found))
