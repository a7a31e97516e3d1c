"""Suspects: from the cached features of a run to suspects.csv, and a page to decide what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers import runs, storage
from flowers.cluster.access import announce
from flowers.cluster.session import background, import_tensorflow, ray_session
from flowers.config import SuspectsOptions, TrainConfig
from flowers.data.corrections import Decision, read_corrections, written
from flowers.data.groups import kept_together
from flowers.data.listing import Listing, listing_of, some
from flowers.errors import DamagedFile, InputError
from flowers.evaluation import suspects as evaluation
from flowers.evaluation.examples import thumbnail_of
from flowers.features.cache import FeatureCache
from flowers.features.extraction import fill
from flowers.model.weights import NAMED_WEIGHTS, check_weights
from flowers.options import check_folder, described
from flowers.pipelines import train
from flowers.plan import image_size, make_plan, weights_of
from flowers.progress import progress_bar
from flowers.report.files import read_report
from flowers.report.record import Report
from flowers.report.suspects import CARDS, Picture, Suspect, SuspectsFound, render_suspects
from flowers.runs import Run
from flowers.text import several

# Photos of each of the two classes beside a suspect, and pixels a side of the suspect and of these.
_NEIGHBOURS, _LARGE, _SMALL = 3, 224, 96


def suspects(uri: str, options: SuspectsOptions, out: Console) -> tuple[SuspectsFound, Run, str]:
    """Finds the photos of a finished run whose labels are doubtful, and writes suspects.csv and suspects.html.

    Args:
        uri: of the run.
        options: how many, and where they are written.
        out: where progress is printed.

    Returns:
        What was found, the place where it was written as a run has it, and the command that trains with it.

    Raises:
        InputError: there is no finished run, its photos are gone, or the place cannot be written.
        DamagedFile: what it left is not what was written.
    """
    run = Run(storage.absolute(uri))
    if not run.finished():
        raise InputError(f"RUN: there is no finished run at {uri!r}; give the folder of one, runs/NAME")
    report = read_report(run)
    target = Run(storage.absolute(options.out)) if options.out else run
    if target != run:
        own = [storage.name(uri) for uri in (target.suspects, target.suspects_page)]
        check_folder("--out", target.uri, own, "list of suspects")
    decided = read_corrections(target.suspects, "--out").decisions if storage.exists(target.suspects) else {}
    ledger = runs.read_ledger(run)
    used = ledger.filter(pc.not_equal(ledger["status"], "quarantined"))
    warnings = list[str]()
    used, features = _features(run, report, used, options.verbose, warnings, out)
    classes = report.data.classes
    labels = np.array([classes.index(label) for label in used["label"].to_pylist()], np.int64)
    looked_at = [decision in ("keep", "relabel") for decision in used["decision"].to_pylist()]
    with progress_bar(out, "learning from the other photos", 1):
        features = evaluation.standardized(features)
        probabilities = evaluation.out_of_sample(features, labels, kept_together(used), len(classes), report.seed)
    found = evaluation.find_suspects(labels, probabilities, options.count, np.array(looked_at, np.bool_))
    if lost := used.num_rows - found.judged:
        warnings.append(f"of {several(lost, 'photo')} nothing can be said: too few others of their class")
    listed = _listed(used, found, classes, decided)
    listed = _with_pictures(listed, used["path"], found, features, labels, report, out)
    earlier = _earlier(ledger, decided, {one.sha256 for one in listed})
    result = SuspectsFound(
        run=run.name,
        source=report.data.source,
        classes=classes,
        photos=used.num_rows,
        judged=found.judged,
        estimated=found.estimated,
        agreement=found.agreement,
        suspects=listed,
        earlier=earlier,
        warnings=warnings,
    )
    if len(listed) > CARDS:
        result.warnings.append(f"the page shows the first {CARDS} of {len(listed)} suspects; suspects.csv has all")
    try:
        storage.write(target.suspects_page, render_suspects(result).encode())
        storage.write(target.suspects, written(one.row for one in result.rows))
    except OSError as error:
        raise InputError(f"--out: {target.uri} cannot be written: {error.strerror or error}") from error
    return result, target, follow_up(report.command, run, target)


def _features(
    run: Run, report: Report, used: pa.Table, verbose: bool, warnings: list[str], out: Console
) -> tuple[pa.Table, evaluation.Features]:
    """The photos that have features, and these: float32 [n, d], what the head of the run starts from."""
    cache = FeatureCache(report.features.cache).open()
    digests = used["sha256"].to_pylist()
    if not set(digests) <= set(cache.digests()):
        cache = _computed(run, used, verbose, out)
        held = set(cache.digests())
        here = [digest in held for digest in digests]
        if lost := here.count(False):
            warnings.append(f"{several(lost, 'photo')} changed or went since the run; left out")
        used = used.filter(pa.array(here))
        digests = used["sha256"].to_pylist()
        if not digests:
            raise InputError(f"RUN: none of {several(len(here), 'photo')} of {run.name!r} is there any more")
    return used, np.asarray(cache.rows(digests), np.float32)


def _computed(run: Run, used: pa.Table, verbose: bool, out: Console) -> FeatureCache:
    """The cache of a run's features, in which those that were missing have been computed again."""
    try:
        options = dict(json.loads(storage.read(run.config))["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{run.config} is damaged: {error}") from error
    # What its head was trained on: nothing of how the network goes on from there.
    others = {"storage": storage.parent(run.uri), "name": run.name, "trainable": "head", "augment": None}
    known = {name: value for name, value in options.items() if name in described(TrainConfig)}
    config = TrainConfig(**{**known, **others, "label_smoothing": None, "relabel": None, "split_file": None})
    check_weights(config.weights)
    out.print("the feature cache is gone: features are computed again", highlight=False)
    announce(out)
    tensorflow = background(functools.partial(import_tensorflow, None), "import tensorflow").result
    rows = listing_of(used)
    listing = Listing(str(config.data), rows, rows.num_rows)
    with ray_session(verbose):
        from flowers.cluster.nodes import check_files, cluster_nodes

        check_files("RUN", some(rows))
        if config.weights not in NAMED_WEIGHTS:
            check_files("RUN", [config.weights])
        plan = make_plan(config, train.facts_of(config, listing, cluster_nodes()))
        build = functools.partial(
            train.build_network, config.backbone, weights_of(config), image_size(config), plan.precision
        )
        network = background(lambda: (tensorflow(), build())[1], "build the network").result
        backend, caches = train.extraction_of(plan, build, network, listing, out)
        with progress_bar(out, "reading, decoding, features", rows.num_rows) as advance:
            fill(rows, functools.partial(train.decoded_photos, plan), caches, backend, advance=advance)
    return caches[plan.features[0]]


def _listed(
    used: pa.Table, found: evaluation.Suspects, classes: Sequence[str], decided: dict[bytes, Decision]
) -> list[Suspect]:
    """The suspects, with what was decided of them."""
    rows = used.take(pa.array(found.indices)).to_pylist()
    scores = zip(found.suggested.tolist(), found.score.tolist(), found.suggested_score.tolist(), strict=True)
    return [
        dataclasses.replace(
            _suspect(row, decided.get(row["sha256"])), suggested=classes[at], score=score, suggested_score=other
        )
        for row, (at, score, other) in zip(rows, scores, strict=True)
    ]


def _earlier(ledger: pa.Table, decided: dict[bytes, Decision], listed: set[str]) -> list[Suspect]:
    """Photos that are no suspects and of which something was decided: by --relabel of the run, or in suspects.csv."""
    found: dict[str, Suspect] = {}
    for row in ledger.filter(pc.is_valid(ledger["sha256"])).to_pylist():
        digest, action = row["sha256"], row["decision"]
        one = decided.get(digest)
        if one is None and action is not None:
            new_label = row["label"] if action == "relabel" else ""
            one = Decision(digest, row["was"] or row["label"], action, new_label)
        if one is not None and digest.hex() not in listed:
            found.setdefault(digest.hex(), _suspect(row, one))
    return list(found.values())


def _suspect(row: Mapping[str, Any], decision: Decision | None) -> Suspect:
    """A photo of the ledger, and what was decided of it."""
    return Suspect(
        path=row["path"],
        sha256=row["sha256"].hex(),
        subset=row["status"],
        label=row["was"] or row["label"],
        now=row["label"],
        action=decision.action if decision else "",
        new_label=decision.new_label if decision else "",
    )


def _with_pictures(
    listed: list[Suspect],
    paths: pa.ChunkedArray,
    found: evaluation.Suspects,
    features: evaluation.Features,
    labels: evaluation.Labels,
    report: Report,
    out: Console,
) -> list[Suspect]:
    """The first suspects with pictures of them, and of the nearest photos that are no suspects; each read once."""

    @functools.cache
    def picture(index: int, size: int) -> Picture:
        path = paths[index].as_py()
        return Picture(
            storage.relative(path, report.data.source), thumbnail_of(path, int(report.config["max_pixels"]), size)
        )

    shown = found.indices[:CARDS]
    others = np.ones(len(labels), np.bool_)
    others[found.indices] = False
    near = [
        evaluation.nearest(features, labels, shown, wanted, others, _NEIGHBOURS)
        for wanted in (labels[shown], found.suggested[:CARDS])
    ]
    cards = []
    with progress_bar(out, "pictures", len(shown)) as advance:
        for one, index, now, suggested in zip(listed, shown.tolist(), *near, strict=False):
            cards.append(
                dataclasses.replace(
                    one,
                    picture=picture(index, _LARGE),
                    like_now=[picture(at, _SMALL) for at in now],
                    like_suggested=[picture(at, _SMALL) for at in suggested],
                )
            )
            advance(1)
    return [*cards, *listed[len(cards) :]]


def follow_up(command: str, run: Run, target: Run) -> str:
    """The command that trains with the decisions, on the same split.

    Args:
        command: how the run was trained, perhaps with earlier decisions; "" if that is not known.
        run: that was.
        target: where the decisions are.
    """
    changed = {"--relabel": target.suspects, "--split-file": run.split, "--name": _next_name(run.name)}
    words, kept = iter(shlex.split(command) or ["python", "-m", "jobs.train", "..."]), list[str]()
    for word in words:
        if word in changed:
            next(words, None)
        elif word.partition("=")[0] not in changed and word != "--fresh":
            kept.append(word)
    return shlex.join([*kept, *(word for pair in changed.items() for word in pair)])


def _next_name(name: str) -> str:
    """The name of the run after that of a name: one, one-relabelled, one-relabelled-2, one-relabelled-3."""
    found = re.fullmatch(r"(.+-relabelled)(?:-(\d+))?", name)
    return f"{found[1]}-{int(found[2] or 1) + 1}" if found else f"{name}-relabelled"
