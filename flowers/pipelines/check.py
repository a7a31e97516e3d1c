"""Looking at photos before training: everything that is known of them without a network."""

from __future__ import annotations

import functools
from contextlib import suppress

import pyarrow as pa
from rich.console import Console

from flowers import runs, storage
from flowers.cluster.access import announce
from flowers.cluster.session import ray_session
from flowers.config import CheckOptions
from flowers.data import quality, reading
from flowers.data.ledger import ROW, Ledger, mark_repeats, settle
from flowers.data.listing import some
from flowers.errors import InputError
from flowers.inference.engine import usable_cpus
from flowers.options import check_file
from flowers.pipelines.source import list_source
from flowers.progress import progress_bar
from flowers.report.check import DataCheck, build_check
from flowers.report.check_html import MARK, render_check


def check(options: CheckOptions, out: Console, command: str = "") -> DataCheck:
    """Reads, decodes, measures and splits photos as training would, and writes a page on them.

    Args:
        options: which photos, and where the page goes.
        out: where progress is printed.
        command: how the job was called, for the page.

    Returns:
        What was found. Its `refusal` says why training would refuse the photos, None if it would not.

    Raises:
        InputError: there are no photos that could be listed at all, or the page cannot be written, or is another's.
    """
    page = storage.absolute(options.page)
    check_file("--page", page, MARK.encode(), "page of jobs.check")
    listing = list_source(options, options.storage)
    known = runs.read_split(options.split_file) if options.split_file else {}
    examine = functools.partial(_examined, max_pixels=options.max_pixels)
    announce(out)
    parts = []
    with ray_session(options.verbose), progress_bar(out, "reading, decoding", listing.table.num_rows) as advance:
        from flowers.cluster.nodes import check_files

        check_files("--data", some(listing.table))
        photos = reading.stream_blocks(listing.table, examine, readers=usable_cpus())
        for table in reading.tables(photos):
            parts.append(reading.detached(table, quality.LOOK.names))
            advance(table.num_rows)
    rows = pa.concat_tables(parts)
    ledger: Ledger | None = None
    refusal = None
    try:
        ledger = settle(
            rows.select(ROW.names),
            options.split,
            options.seed,
            options.max_bad_fraction,
            known,
            options.near_duplicates,
            options.corrections,
        )
    except InputError as error:
        refusal = str(error)
        if options.corrections is not None:
            with suppress(InputError):  # perhaps what is refused
                rows, *_ = options.corrections.apply(rows)
        rows = mark_repeats(rows)  # as the refusal counts them
    found = build_check(command, listing, rows, ledger, refusal, options.max_pixels)
    try:
        storage.write(page, render_check(found).encode())
    except OSError as error:
        raise InputError(f"--page: {options.page} cannot be written: {error.strerror or error}") from error
    return found


def _examined(block: pa.Table, max_pixels: int) -> pa.Table:
    return quality.look(reading.read_block(block), max_pixels=max_pixels)
