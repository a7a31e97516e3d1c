"""What to label next: photos without labels through a bundle, to a list of the few that are worth it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers import published, storage
from flowers.bundle import load_bundle
from flowers.cluster.access import announce
from flowers.cluster.session import ray_session
from flowers.config import NextOptions
from flowers.data import reading
from flowers.errors import InputError
from flowers.options import check_folder
from flowers.pipelines.origin import Origin
from flowers.pipelines.source import list_unlabelled
from flowers.prediction import tasks
from flowers.prediction.parts import held
from flowers.prediction.scorer import Machine, Scorer, scores_of
from flowers.prediction.selection import choose, least_sure, uncertainty
from flowers.progress import progress_bar
from flowers.text import several


@dataclass
class Chosen:
    """What was done.

    Attributes:
        files: of the source.
        rows: chosen photos, the least sure first, as `flowers.prediction.tasks.described` makes them.
        known: photos that the run knows already.
        repeats: files with the bytes of another one.
        unusable: files that are no usable photo, by reason.
        warnings: what one should know.
    """

    files: int
    rows: list[tasks.Task] = field(default_factory=list)
    known: int = 0
    repeats: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def choose_next(options: NextOptions, out: Console) -> Chosen:
    """Chooses photos to label, and writes next.csv, tasks.json and labels.xml.

    Args:
        options: which photos, by which bundle, and how many.
        out: where progress is printed.

    Raises:
        InputError: there is no bundle, no photo that could be labelled, or the place cannot be written.
    """
    origin = Origin(load_bundle(published.answering(storage.absolute(options.bundle))))
    listing = list_unlabelled(options.data, options.storage, options.root).table
    if not listing.num_rows:
        raise InputError(f"--data: found no files in {options.data!r}; give a folder, a manifest or an archive")
    chosen = Chosen(listing.num_rows)
    if origin.report is None:
        chosen.warnings.append(
            "which photos the bundle was made from is not known, as its run is gone: some may be here"
        )
    folder = storage.absolute(options.out)
    check_folder("--out", folder, [tasks.MANIFEST, tasks.CONFIG], "list of photos to label")
    if count := tasks.filled_in(folder):
        manifest = storage.join(options.out, tasks.MANIFEST)
        raise InputError(
            f"--out: {manifest} holds {several(count, 'label')} that somebody filled in; train with it "
            f"(--data {manifest}), and give another folder, or remove it"
        )
    announce(out)
    with held(folder), ray_session(options.verbose, options.device):
        from flowers.cluster.nodes import cluster_nodes

        machine = Machine.of(cluster_nodes(), options.engine, options.actors, options.device)
        out.print(f"device    {machine.words}", highlight=False)
        scorer = Scorer(origin.bundle, machine, options.max_pixels, features=True)
        found = _candidates(scorer, listing, origin, options.count, chosen, out)
        if not found.num_rows:
            raise InputError(
                f"--data: none of {several(chosen.files, 'file')} can be labelled: {chosen.known} known to the run, "
                f"{chosen.unusable.total()} unusable, {several(chosen.repeats, 'copy', 'copies')}"
            )
        features = np.stack([np.asarray(row, np.float32) for row in found["features"].to_numpy()])
        scores = scores_of(found)
        picked = choose(features, uncertainty(scores), options.count, options.seed)
        chosen.rows = tasks.described(found.take(pa.array(picked)), scores[picked], origin.bundle.classes)
        with storage.enough_space(folder):
            tasks.write(folder, chosen.rows, origin.bundle, storage.absolute(options.files_root))
    return chosen


def _candidates(
    scorer: Scorer, listing: pa.Table, origin: Origin, count: int, chosen: Chosen, out: Console
) -> pa.Table:
    """The least sure photos, each content once; only so many are in memory as are chosen from."""
    known = reading.digests_array(origin.photos("train", "validation", "test")["sha256"].to_pylist())
    best, seen = scorer.schema.empty_table(), set[bytes]()
    with progress_bar(out, "reading, decoding, predicting", listing.num_rows, speed=True) as advance:
        for table in scorer.tables(listing, known):
            advance(table.num_rows)
            chosen.unusable.update(table["code"].drop_null().to_pylist())
            good = table.filter(pc.is_null(table["code"]))
            scored = good.filter(pc.is_valid(good["scores"]))
            chosen.known += good.num_rows - scored.num_rows
            new = []
            for index, digest in enumerate(scored["sha256"].to_pylist()):
                if digest not in seen:
                    seen.add(digest)
                    new.append(index)
            chosen.repeats += scored.num_rows - len(new)
            if new:
                best = pa.concat_tables([best, scored.take(pa.array(new))])
                best = best.take(pa.array(least_sure(uncertainty(scores_of(best)), count)))
    return best
