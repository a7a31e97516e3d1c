"""The photos that options name: what every job that reads labelled photos begins with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowers import runs, storage
from flowers.config import DataOptions, EvaluateOptions, PackOptions
from flowers.data.listing import Listing, list_files, list_photos
from flowers.data.preflight import check_small_classes


@contextmanager
def _datasets(runs_storage: str) -> Iterator[str]:
    """The local folder in which named sets, and what was unpacked, are kept for runs in a storage; never left empty."""
    local = "~/.cache/flowers" if storage.is_remote(runs_storage) else runs_storage
    folder = storage.join(storage.absolute(local), "datasets")
    with storage.no_empty_folders(folder):
        yield folder


def list_source(options: DataOptions, runs_storage: str) -> Listing:
    """Lists the photos, and refuses what no split could be made of.

    Args:
        options: which photos.
        runs_storage: folder or URI of all runs: named sets are kept in it, and it is none of the photos.

    Raises:
        InputError: there is nothing to train on, or --relabel names classes that there are not.
    """
    with _datasets(runs_storage) as datasets:
        listing = list_photos(
            options.data,
            datasets=datasets,
            per_class=options.per_class,
            seed=options.seed,
            layout=options.layout,
            group_by=options.group_by,
            root=options.root,
            class_names=options.class_names,
            runs=storage.absolute(runs_storage),
            run_files=runs.FILES,
        )
    if options.corrections is None:
        check_small_classes(listing.table, options.max_pixels)
    else:
        options.corrections.check_labels(listing.table["label"].to_pylist())
    return listing


def list_labelled(options: EvaluateOptions | PackOptions, data: str) -> Listing:
    """Lists photos with their labels, all of them, whatever can be made of these.

    Args:
        options: how they are laid out, and where runs are kept.
        data: which photos, as the option ``--data``.

    Raises:
        InputError: the source cannot be read.
    """
    with _datasets(options.storage) as datasets:
        return list_files(
            data,
            datasets=datasets,
            layout=options.layout,
            root=options.root,
            class_names=options.class_names,
            runs=storage.absolute(options.storage),
            run_files=runs.FILES,
        )


def list_unlabelled(data: str, runs_storage: str, root: str | None = None) -> Listing:
    """Lists photos whose labels nobody asks for.

    Args:
        data: as the option ``--data``.
        runs_storage: as for `list_source`.
        root: as the option ``--root``.

    Raises:
        InputError: the source cannot be read.
    """
    with _datasets(runs_storage) as datasets:
        return list_files(
            data,
            datasets=datasets,
            labelled=False,
            root=root,
            runs=storage.absolute(runs_storage),
            run_files=runs.FILES,
        )
