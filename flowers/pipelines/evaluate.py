"""Evaluation: a bundle on labelled photos, and another one on the same, to a report and a row a photo."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers import published, runs, storage
from flowers.bundle import MANIFEST, load_bundle
from flowers.cluster.access import announce
from flowers.cluster.session import ray_session
from flowers.config import EvaluateOptions, top_said
from flowers.data import reading
from flowers.data.corrections import in_words, read_corrections
from flowers.data.listing import LISTING, listing_of
from flowers.data.look_alikes import did_you_mean
from flowers.errors import FlowersError, InputError, few
from flowers.evaluation import calibration, ranking
from flowers.evaluation.answers import Answers
from flowers.evaluation.gallery import small_pictures, worth_a_look
from flowers.evaluation.unknown import Unknown
from flowers.options import check_folder, wrong
from flowers.pipelines.origin import Origin
from flowers.pipelines.source import list_labelled, list_unlabelled
from flowers.prediction.parts import encoded, held, predicted
from flowers.prediction.scorer import Machine, Scorer, scores_of
from flowers.progress import progress_bar
from flowers.report.evaluation import Comparison, EvaluationReport, Rows, compare, confusion_csv
from flowers.report.evaluation_html import render_evaluation
from flowers.report.findings import left_out
from flowers.text import several
from flowers.typicality import rejected

PREDICTIONS, CONFUSION = "predictions.parquet", "confusion.csv"


@dataclass(frozen=True)
class _Photos:
    """The photos to evaluate on.

    Attributes:
        source: where they were listed.
        table: all files, schema `flowers.data.listing.LISTING`.
        digests: of what the files have to hold, by path; None where anything may be in them.
    """

    source: str
    table: pa.Table
    digests: dict[str, bytes] | None = None


def evaluate(options: EvaluateOptions, out: Console, command: str = "") -> tuple[EvaluationReport, str]:
    """Evaluates a bundle.

    Args:
        options: which bundle, on which photos.
        out: where progress is printed.
        command: how the job was called, for the report.

    Returns:
        The report, and the folder that it was written to.

    Raises:
        InputError: there is no bundle, or there are no photos that it can be evaluated on.
    """
    origin = _origin(options.bundle)
    if fewer := top_said(options.top, len(origin.bundle.classes)):
        out.print(fewer, highlight=False)
    if options.unknown is not None:
        origin.bundle.typicality(options.unknown)  # refused before anything is read
    baseline = _origin(options.baseline) if options.baseline else None
    if baseline is not None and not set(baseline.bundle.classes) & set(origin.bundle.classes):
        hint = did_you_mean(baseline.bundle.classes, origin.bundle.classes)
        raise InputError(
            f"--baseline: {options.baseline} knows {few(baseline.bundle.classes)}, of which {options.bundle} knows "
            f"none; required is a bundle of the same classes{hint and f' ({hint})'}"
        )
    photos = _photos(options, origin)
    folder = _folder(options, origin, photos.source)
    announce(out)
    with held(folder), storage.enough_space(folder), ray_session(options.verbose, options.device):
        from flowers.cluster.nodes import cluster_nodes

        machine = Machine.of(cluster_nodes(), options.engine, options.actors, options.device)
        out.print(f"device    {machine.words}", highlight=False)
        began = time.monotonic()
        report, rows = _evaluate(options, origin, baseline, photos, machine, out)
        report = report.model_copy(update={"command": command, "seconds": round(time.monotonic() - began, 2)})
        storage.delete_file(storage.join(folder, runs.REPORT))  # while the other files are those of another one
        storage.write(storage.join(folder, PREDICTIONS), encoded(rows, "parquet"))
        storage.write(storage.join(folder, CONFUSION), confusion_csv(report.summary))
        storage.write(storage.join(folder, runs.PAGE), render_evaluation(report).encode())
        storage.write(storage.join(folder, runs.REPORT), report.to_json().encode())
    return report, folder


def _origin(uri: str) -> Origin:
    return Origin(load_bundle(published.answering(storage.absolute(uri))))


def _photos(options: EvaluateOptions, origin: Origin) -> _Photos:
    if options.data is None:
        tests = origin.photos("test")
        if not tests.num_rows:
            raise InputError(
                f"--data is missing: no test photos of the bundle {origin.bundle.uri} are known, as its run is gone or "
                "tested none; give labelled photos"
            )
        digests = dict(zip(tests["path"].to_pylist(), tests["sha256"].to_pylist(), strict=True))
        return _Photos(origin.report.data.source if origin.report else "", listing_of(tests), digests)
    found = list_labelled(options, options.data)
    return _Photos(found.source, found.table)


def _others(options: EvaluateOptions) -> pa.Table:
    """Photos of other things than the classes."""
    if options.unknown_data is None:
        return LISTING.empty_table()
    found = list_unlabelled(options.unknown_data, options.storage)
    if not found.table.num_rows:
        raise wrong("unknown_data", options.unknown_data, "a folder with photos in it, or below it")
    return found.table


def _folder(options: EvaluateOptions, origin: Origin, source: str) -> str:
    if options.out is not None:
        folder = storage.absolute(options.out)
        if storage.exists(runs.Run(folder).config) or storage.exists(storage.join(folder, MANIFEST)):
            raise wrong("out", options.out, "a folder that is neither a run nor a bundle: it would lose its report")
        check_folder("--out", folder, [PREDICTIONS], "evaluation")
        return folder
    if origin.run is None:
        raise InputError(f"--out is missing: the bundle {origin.bundle.uri} does not lie in a run; say where to write")
    name = "test"
    if options.data is not None:
        stem = "".join(one if one.isalnum() or one in "-_" else "-" for one in storage.name(source).split(".")[0])
        name = f"{stem[:40]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    return origin.run.evaluation(name)


def _evaluate(
    options: EvaluateOptions,
    origin: Origin,
    baseline: Origin | None,
    photos: _Photos,
    machine: Machine,
    out: Console,
) -> tuple[EvaluationReport, pa.Table]:
    """The report, and a row for each photo that counts."""
    bundle, warnings = origin.bundle, list[str]()
    classes = bundle.classes
    corrections = read_corrections(options.relabel) if options.relabel else None
    if corrections is not None:
        corrections.check_labels(classes)
    labels = photos.table["label"]
    known = pc.is_in(labels, pa.array(classes, pa.string()))
    strange = photos.table.filter(pc.and_(pc.is_valid(labels), pc.invert(known)))
    strange = strange.filter(pc.is_null(strange["code"]))
    unlabelled = photos.table.filter(pc.or_(pc.is_valid(photos.table["code"]), pc.is_null(labels)))
    todo = photos.table.filter(pc.and_(known, pc.is_null(photos.table["code"])))
    scorer = Scorer(bundle, machine, options.max_pixels, unknown=options.unknown, say=warnings.append)
    trained_on = reading.digests_array(_trained_on(options, origin, warnings))
    scored = _scored(scorer, todo, "evaluating", out, trained_on)
    if corrections is not None:
        scored, _, decisions = corrections.apply(scored, some=True)
        if decided := in_words(Counter(decisions.drop_null().to_pylist())):
            warnings.append(f"labels corrected by --relabel: {decided}")

    bad = scored.filter(pc.is_valid(scored["code"]))
    rest = scored.filter(pc.is_null(scored["code"]))
    seen = rest.filter(pc.is_null(rest["scores"]))
    rows = rest.filter(pc.is_valid(rest["scores"]))
    unusable = [_reasons(bad), _reasons(unlabelled, "unlabelled")]
    if photos.digests is not None:
        same = pa.array(
            [photos.digests[path] == digest for path, digest in zip(*_columns(rows, "path", "sha256"), strict=True)]
        )
        unusable.append(_reasons(rows.filter(pc.invert(same)), "changed"))
        rows = rows.filter(same)
    reasons = Counter(_column(pa.concat_tables(unusable), "reason"))
    hint = did_you_mean(_column(strange), classes)
    if not rows.num_rows:
        raise InputError(
            f"--data: none of {several(photos.table.num_rows, 'file')} can be evaluated: {seen.num_rows} trained on, "
            f"{strange.num_rows} of labels that the bundle does not know ({few(sorted(set(_column(strange))))}), "
            f"{sum(reasons.values())} unusable or without a label; the bundle knows {few(sorted(classes))}"
            f"{hint and f'; {hint}'}"
        )
    if hint:
        warnings.append(f"labels that the bundle does not know are left out; {hint}")
    warnings += _doubts(rows, origin, options)
    answers = Answers(rows, scores_of(rows), classes)
    auc, macro_auc = ranking.one_vs_rest(answers.labels, answers.scores, classes)
    table = _rows_of(answers, options.top)
    unknown = None
    if options.unknown is not None:
        others = {"photos of other labels": strange, "photos of --unknown-data": _others(options)}
        unknown = _unknown(options.unknown, answers, scorer, others, out)
        table = _with_typicality(table, rows["typicality"], options.unknown)
    galleries, cells = worth_a_look(answers, photos.source, scorer.predictor)
    comparison = None
    if baseline is not None:
        comparison, table = _compared(options, baseline, answers, table, photos.source, machine, out)
    report = EvaluationReport(
        created=runs.now(),
        command="",
        bundle=bundle.uri,
        bundle_sha256=bundle.sha256,
        source=photos.source,
        image_size=bundle.image_size,
        rows=Rows(
            found=photos.table.num_rows,
            evaluated=rows.num_rows,
            training=seen.num_rows,
            unknown=strange.num_rows,
            unusable=sum(reasons.values()),
        ),
        unknown_labels=dict(Counter(_column(strange)).most_common()),
        reasons=dict(reasons.most_common()),
        warnings=warnings,
        seconds=0.0,
        summary=answers.summary(options.top),
        auc=auc,
        macro_auc=macro_auc,
        calibration=answers.calibration(*_temperature(scorer, origin, out)),
        coverage=ranking.coverage(answers.score, answers.right),
        coverage_curve=ranking.coverage_curve(answers.score, answers.right),
        slices=answers.slices(photos.source),
        unknown=unknown,
        comparison=comparison,
        galleries=galleries,
        cells=cells,
        left_out=left_out(pa.concat_tables(unusable), options.max_pixels, photos.source),
    )
    return report, table


def _unknown(allowed: float, answers: Answers, scorer: Scorer, others: Mapping[str, pa.Table], out: Console) -> Unknown:
    """How many photos of the classes get no label, and how many others, those that can be read."""
    found = {
        name: _scored(scorer, listing, name, out)["typicality"].drop_null().to_numpy()
        for name, listing in others.items()
        if listing.num_rows
    }
    return Unknown.of(allowed, answers.rows["typicality"].to_numpy(), answers.right, found)


def _with_typicality(table: pa.Table, typicality: pa.ChunkedArray, allowed: float) -> pa.Table:
    """The rows with typicality, and whether it is too low for a photo of the classes."""
    table = table.append_column("typicality", typicality)
    return table.append_column("unknown", pa.array(rejected(typicality.to_numpy(), allowed)))


def _scored(
    scorer: Scorer, listing: pa.Table, what: str, out: Console, skipped: reading.Known = reading.NONE_KNOWN
) -> pa.Table:
    parts = [scorer.schema.empty_table()]
    with progress_bar(out, what, listing.num_rows, speed=True) as advance:
        for table in scorer.tables(listing, skipped):
            parts.append(table)
            advance(table.num_rows)
    return pa.concat_tables(parts)


def _reasons(rows: pa.Table, otherwise: str = "") -> pa.Table:
    """Files that are not used, columns path, reason and detail; those without a code are so for `otherwise`."""
    columns = {"path": rows["path"], "reason": rows["code"].fill_null(otherwise), "detail": rows["detail"]}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))


def _column(rows: pa.Table, name: str = "label") -> list[str]:
    return list(rows[name].to_pylist())


def _columns(rows: pa.Table, *names: str) -> list[list[object]]:
    return [rows[name].to_pylist() for name in names]


def _trained_on(options: EvaluateOptions, origin: Origin, warnings: list[str]) -> list[bytes]:
    """Digests of photos to leave out."""
    if options.allow_training_rows:
        warnings.append("photos that the bundle was trained on count too (--allow-training-rows): too good to be true")
        return []
    if origin.report is None:
        warnings.append(
            "which photos the bundle was trained on is not known, as its run is gone: if some of them are among these, "
            "the numbers are too good"
        )
        return []
    return list(origin.photos("train")["sha256"].to_pylist())


def _doubts(rows: pa.Table, origin: Origin, options: EvaluateOptions) -> list[str]:
    """What one should know of the photos that count."""
    found, digests = [], rows["sha256"].to_pylist()
    if validated := sum(map(set(origin.photos("validation")["sha256"].to_pylist()).__contains__, digests)):
        said = several(validated, "photo is a validation photo", "photos are validation photos")
        found.append(f"{said} of the run, which chose its epoch: a little too good")
    labels: dict[bytes, set[str]] = {}
    for digest, label in zip(digests, _column(rows), strict=True):
        labels.setdefault(digest, set()).add(label)
    if copies := len(digests) - len(labels):
        found.append(f"{several(copies, 'file has', 'files have')} the same bytes as another one; each counts")
    if conflicts := sum(len(one) > 1 for one in labels.values()):
        found.append(
            f"{several(conflicts, 'photo is', 'photos are')} there under two labels: one of them counts as wrong"
        )
    if len(digests) < 30:
        found.append(f"only {several(len(digests), 'photo')}: look at the interval, not at the value")
    if absent := sorted(set(origin.bundle.classes) - set(_column(rows))):
        found.append(f"no photo of: {few(absent)}")
    return found


def _temperature(scorer: Scorer, origin: Origin, out: Console) -> tuple[float | None, int, str]:
    """The temperature that fits the run's validation photos best, how many those are, and why there is none."""
    try:
        photos = origin.photos("validation")
    except FlowersError as error:
        return None, 0, str(error)
    if not photos.num_rows:
        return None, 0, "the run's validation photos are not known"
    rows = _scored(scorer, listing_of(photos), "validation photos, for the temperature", out)
    expected = pa.chunked_array([photos["sha256"].combine_chunks()])
    rows = rows.filter(pc.and_(pc.is_valid(rows["scores"]), pc.equal(rows["sha256"], expected).fill_null(False)))
    if not rows.num_rows:
        return None, 0, "none of the run's validation photos is there any more"
    answers = Answers(rows, scores_of(rows), origin.bundle.classes)
    return calibration.fit_temperature(answers.scores, answers.labels), rows.num_rows, ""


def _rows_of(answers: Answers, top: int) -> pa.Table:
    """A row for each photo: its label, `predicted`: what is said of it, whether that is right, what slices go by."""
    said = predicted(answers.rows, answers.classes, top, scores=True)
    columns = {
        "path": said["path"],
        "sha256": said["sha256"],
        "label": answers.rows["label"],
        "predicted": said["label"],
        "score": said["score"],
        "top": said["top"],
        "scores": said["scores"],
        "correct": pa.array(answers.right),
        "margin": pa.array(answers.margin),
        **{name: answers.rows[name] for name in ("width", "height", "brightness", "split", "group")},
    }
    return pa.table(columns).replace_schema_metadata(said.schema.metadata)


def _compared(
    options: EvaluateOptions,
    baseline: Origin,
    answers: Answers,
    table: pa.Table,
    source: str,
    machine: Machine,
    out: Console,
) -> tuple[Comparison, pa.Table]:
    """The comparison with another bundle, and the rows with what it says: null where it is not asked."""
    trained: set[bytes] = set()
    if not options.allow_training_rows:
        trained = set(baseline.photos("train")["sha256"].to_pylist())
    digests, labels = answers.rows["sha256"].to_pylist(), np.array(_column(answers.rows), np.object_)
    known = np.isin(labels.astype(str), list(baseline.bundle.classes))
    seen = np.array([digest in trained for digest in digests], np.bool_) & known
    both: npt.NDArray[np.bool_] = known & ~seen
    chosen = answers.rows.filter(pa.array(both))
    scorer = Scorer(baseline.bundle, machine, options.max_pixels)
    scored = _scored(scorer, listing_of(chosen), "the baseline", out)
    if scored["code"].null_count < scored.num_rows:
        lost = scored.filter(pc.is_valid(scored["code"]))
        raise InputError(f"--data: {lost['path'][0]} changed meanwhile: {lost['code'][0]}; run the same command again")
    names = baseline.bundle.classes
    said = [names[at] for at in scores_of(scored).argmax(axis=1)] if scored.num_rows else []
    compared = Answers(chosen, answers.scores[both], answers.classes)
    comparison = compare(
        compared,
        said,
        baseline.bundle.uri,
        source=source,
        training=int(seen.sum()),
        unknown=int((~known).sum()),
        training_known=baseline.report is not None,
        pictures=functools.partial(small_pictures, compared, predictor=scorer.predictor),
    )
    place = np.full(len(both), -1)
    place[both] = np.arange(len(said))
    column = pa.array(said, pa.string()).take(pa.array(place, mask=~both))
    return comparison, table.append_column("baseline", column)
