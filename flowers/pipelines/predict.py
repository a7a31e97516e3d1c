"""Bulk prediction: from photos to files of predictions, and to folders by predicted class."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers import locks, published, runs, storage
from flowers.bundle import load_bundle
from flowers.cluster.access import announce
from flowers.cluster.session import ray_session
from flowers.config import PredictOptions, top_said
from flowers.data import shards
from flowers.data.listing import Listing
from flowers.errors import InputError
from flowers.options import flag, wrong
from flowers.pipelines.source import list_unlabelled
from flowers.prediction.folders import Folders, claimed, sort_into
from flowers.prediction.parts import Predictions, held, predicted, read_part
from flowers.prediction.renewal import outdated
from flowers.prediction.scorer import Machine, Scorer
from flowers.progress import progress_bar, warn
from flowers.text import several


@dataclass
class Predicted:
    """What was done.

    Attributes:
        files: of the source.
        errors: files that are no usable photo, of those that were looked at for the first time.
        unknown: photos that are none of the classes, of these; None if that was not asked.
        looked: files that were looked at for the first time.
        again: files with a row that were looked at again.
        renewed: rows of these that say something else now.
        seconds: that took, from the first file to the last.
        waiting: files that were added since all was complete, and wait for --update.
        example: what is wrong with a bad file.
    """

    files: int
    errors: int = 0
    unknown: int | None = None
    looked: int = 0
    again: int = 0
    renewed: int = 0
    seconds: float = 0.0
    waiting: int = 0
    example: str = ""


def predict(options: PredictOptions, out: Console) -> Predicted:
    """Predicts every file of a source that has no prediction yet, and if asked those whose row may not hold any more.

    Args:
        options: which photos, by which bundle, and where predictions go.
        out: where progress is printed.

    Raises:
        InputError: there are no photos, no bundle, or the target is of other options.
    """
    bundle = load_bundle(published.answering(storage.absolute(options.bundle)))
    if fewer := top_said(options.top, len(bundle.classes)):
        out.print(fewer, highlight=False)
    if options.unknown is not None:
        bundle.typicality(options.unknown)  # refused before anything is read
    listing = _listing(options)
    target = Predictions(storage.absolute(options.out), options.format)
    identity = {"--bundle": bundle.sha256, "--data": listing.source} | {
        flag(name): getattr(options, name) for name in ("format", "top", "scores", "unknown", "engine", "max_pixels")
    }
    announce(out)
    began = datetime.now(UTC)
    how = {"bundle": bundle.sha256} | {flag(name): getattr(options, name) for name in ("unknown", "min_score", "link")}
    sorting = claimed(storage.absolute(options.sort_into), how) if options.sort_into else nullcontext()
    with held(target.uri), storage.enough_space(target.uri), target.kept(), sorting:
        target.open(identity, bundle.classes, began.isoformat())
        complete, since = storage.exists(target.summary), target.since()
        todo = listing.table.filter(pc.invert(pc.is_in(listing.table["path"], value_set=target.done())))
        found = Predicted(listing.table.num_rows, unknown=None if options.unknown is None else 0)
        if complete and not options.update:
            found.waiting, todo = todo.num_rows, todo.slice(0, 0)
        again = outdated(target, listing.table) if options.update else []
        if todo.num_rows or again:
            storage.delete_file(target.summary)
        if todo.num_rows or again or options.sort_into:
            with ray_session(options.verbose, options.device):
                from flowers.cluster.nodes import cluster_nodes

                machine = Machine.of(cluster_nodes(), options.engine, options.actors, options.device)
                out.print(f"device    {machine.words}", highlight=False)
                say = functools.partial(warn, out=out)
                scorer = Scorer(bundle, machine, options.max_pixels, unknown=options.unknown, say=say)
                _predict(options, scorer, todo, target, found, out)
                _renew(options, scorer, again, target, found, out)
                if options.sort_into:
                    _sort(options, target, out)
        if not complete or todo.num_rows or options.update:
            counts = target.counts(options.unknown is not None)
            as_of = began if options.update else datetime.fromtimestamp(since, UTC)
            times = {"began": as_of.isoformat(), "finished": runs.now()}
            target.finish({"files": found.files, **counts, **times, "bundle": bundle.uri})
    return found


def _listing(options: PredictOptions) -> Listing:
    """All files of the source but those that this job writes."""
    found = list_unlabelled(options.data, options.storage, options.root)
    table = found.table
    for name, written in (("out", options.out), ("sort_into", options.sort_into)):
        if written is None:
            continue
        uri = storage.absolute(written)
        if uri == found.source:
            raise wrong(name, written, "another folder than that of the photos")
        others = [not storage.inside(path, uri) and path != locks.beside(uri) for path in table["path"].to_pylist()]
        table = table.filter(pa.array(others, pa.bool_()))
    if options.link and any(map(shards.place_of, table["path"].to_pylist())):
        raise wrong("link", True, "photos that are files, these lie in shards; leave it out")
    if not table.num_rows:
        raise InputError(
            f"--data: found no files in {options.data!r}; give a folder, a photo, a manifest or an archive"
        )
    return Listing(found.source, table, table.num_rows)


def _predict(
    options: PredictOptions, scorer: Scorer, todo: pa.Table, target: Predictions, found: Predicted, out: Console
) -> None:
    """Writes parts of all files in `todo`, the last one of fewer than the others."""
    if not todo.num_rows:
        return
    waiting: list[pa.Table] = []
    numbers = itertools.count(target.next())
    began = time.monotonic()

    def write(rows: int) -> None:
        table = pa.concat_tables(waiting)
        part, rest = table.slice(0, rows), table.slice(rows)
        waiting[:] = [rest] if rest.num_rows else []
        errors = part["error"].drop_null()
        target.write(next(numbers), part)
        found.looked += part.num_rows
        found.errors += len(errors)
        if found.unknown is not None:
            found.unknown += part.num_rows - part["reason"].null_count
        if len(errors) and not found.example:
            found.example = f"{part.filter(pc.is_valid(part['error']))['path'][0]}: {errors[0]}"
        found.seconds = time.monotonic() - began

    with progress_bar(out, "reading, decoding, predicting", todo.num_rows, speed=True) as advance:
        for table in scorer.tables(todo):
            waiting.append(predicted(table, scorer.bundle.classes, options.top, options.scores, options.unknown))
            advance(table.num_rows)
            while sum(one.num_rows for one in waiting) >= options.part_photos:
                write(options.part_photos)
        if waiting:
            write(options.part_photos)


def _renew(
    options: PredictOptions,
    scorer: Scorer,
    again: Sequence[tuple[str, pa.Table]],
    target: Predictions,
    found: Predicted,
    out: Console,
) -> None:
    """Looks at files again, and writes each part anew in which rows change: every file has one row at any moment."""
    if not again:
        return
    listing, waiting, errors = pa.concat_tables([files for _, files in again]), list[pa.Table](), list[str | None]()
    left = iter(again)
    uri, files = next(left)
    with progress_bar(out, "looking again", listing.num_rows, speed=True) as advance:
        for table in scorer.tables(listing):
            waiting.append(predicted(table, scorer.bundle.classes, options.top, options.scores, options.unknown))
            advance(table.num_rows)
            while files.num_rows and sum(one.num_rows for one in waiting) >= files.num_rows:
                rows = pa.concat_tables(waiting)
                errors += target.renew(uri, rows.slice(0, files.num_rows))
                waiting[:] = [rows.slice(files.num_rows)]
                uri, files = next(left, ("", files.slice(0, 0)))
    found.again, found.renewed = listing.num_rows, len(errors)
    if options.sort_into and (sorted_before := errors.count(None)):
        said = several(sorted_before, "photo")
        warn(f"{said} changed: what --sort-into has of {'it' if sorted_before == 1 else 'them'} from before stays", out)


def _sort(options: PredictOptions, target: Predictions, out: Console) -> None:
    """Sorts the photos of all parts, those of earlier calls included."""
    folders, gone = Folders(options.min_score), 0
    place = storage.absolute(options.sort_into or "")
    parts = target.parts()
    with progress_bar(out, "sorting", len(parts)) as advance:
        for uri in parts:
            gone += sort_into(place, list(folders.places(read_part(uri, ["path", "label", "score"]))), options.link)
            advance(1)
    if gone:
        warn(f"{several(gone, 'photo is', 'photos are')} not in --sort-into: no longer readable", out)
