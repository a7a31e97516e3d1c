"""Ray Data's part: a listing becomes a stream of Arrow blocks, each photo read, hashed and decoded once.

Whoever opens a photo by its path does it here: it may be a file, or a row of a shard (`flowers.data.shards`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from flowers import storage
from flowers.data import decoding, images, shards
from flowers.data.crops import RandomCrops, crops_of
from flowers.data.ledger import ROW
from flowers.data.near_duplicates import perceptual_hash
from flowers.errors import BadImage, FlowersError, InputError, ProcessLost, first_line

if TYPE_CHECKING:
    import ray.data

# So often a pass over photos goes on after a loss.
LOSSES = 3
# Actors hold their CPUs as long as they live. They leave a part of each, of which tasks beside them take a part: on
# whatever nodes are left after a loss, there is room to read.
_HELD, BESIDE_ACTORS = 0.9, 0.05
# Rows that an actor takes at once: its last batch, which is not full, then costs little.
ACTOR_ROWS = 256
# How long Ray Data rests before it looks again whether blocks that it holds back are wanted.
_REST_S = 0.02
# Most rows of a block: of photos that are decoded, 150 kB each at 224 pixels, and of those that are read and hashed
# only. A block takes Ray some 20 ms of CPU, as long as a thousand small photos take.
DECODED_ROWS, READ_ROWS = 128, 512
MAX_BYTES = 256 * 1024 * 1024

# A photo as read: the listing's columns, its bytes (null where there is a `code`) and their SHA-256.
BYTES = pa.schema([*ROW, ("bytes", pa.large_binary())])
# A photo as decoded: uint8 [size, size, 3] as `size * size * 3` bytes, null where there is a `code` or nothing to do.
PIXELS = pa.schema([*ROW, ("pixels", pa.large_binary())])

T = TypeVar("T")
Known = npt.NDArray[np.bytes_]
NONE_KNOWN: Known = np.empty(0, dtype="S32")


def stream_pixels(
    listing: pa.Table,
    *,
    size: int,
    max_pixels: int,
    readers: int,
    known: Known = NONE_KNOWN,
    crops: RandomCrops | None = None,
    num_cpus: float = 1,
) -> ray.data.Dataset:
    """The photos of `listing`, read, hashed and decoded in one task, so that bytes never leave it.

    Args:
        listing: schema `flowers.data.listing.LISTING`; a photo may be listed many times.
        size: height and width to decode to, in pixels.
        max_pixels: refuse larger pictures before decoding.
        readers: tasks that read and decode at once.
        known: sorted digests of photos that need no decoding (`digests_array`).
        crops: the view of each photo; None takes the middle square.
        num_cpus: CPUs that Ray reserves for each task; less than one where training holds them.

    Returns:
        A lazy dataset of schema `PIXELS` in the order of the listing.

    Raises:
        ValueError: not one crop a photo.
    """
    import ray

    reference = ray.put(known) if len(known) else None
    listing, scale = (listing, None) if crops is None else (crops.beside(listing), crops.scale)

    def decode(block: pa.Table) -> pa.Table:
        views = None if scale is None else crops_of(block, scale)
        skipped = NONE_KNOWN if reference is None else ray.get(reference)
        return decode_block(read_block(block), size=size, max_pixels=max_pixels, known=skipped, crops=views)

    most = READ_ROWS if len(known) >= listing.num_rows else DECODED_ROWS
    return stream_blocks(listing, decode, readers=readers, most=most, num_cpus=num_cpus)


def stream_blocks(
    listing: pa.Table,
    function: Callable[[pa.Table], pa.Table],
    *,
    readers: int,
    most: int = DECODED_ROWS,
    num_cpus: float = 1,
) -> ray.data.Dataset:
    """Cuts a table into small blocks and maps each by a Ray task.

    Args:
        listing: one row a file, of any schema.
        function: from a block of `listing` to a table of as many rows.
        readers: tasks that run at once.
        most: rows of a block.
        num_cpus: CPUs that Ray reserves for each task.

    Returns:
        A lazy dataset in the order of the listing.
    """
    rows = int(np.clip(listing.num_rows // (readers * 16), 8, most))
    blocks = [listing.slice(start, rows).combine_chunks() for start in range(0, listing.num_rows, rows)]
    return stream_tables(blocks, function, readers=readers, num_cpus=num_cpus)


def stream_tables(
    blocks: Sequence[pa.Table], function: Callable[[pa.Table], pa.Table], *, readers: int, num_cpus: float = 1
) -> ray.data.Dataset:
    """Maps each table by a Ray task, in their order; arguments as of `stream_blocks`, a row each or fewer."""
    import ray.data

    context = ray.data.DataContext.get_current()
    # Without this, blocks come in the order in which they finish, and no run equals another.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # not one of Ray's, which does not say what it was
    context.custom_execution_callback_classes = [_patient()]
    # Not from_arrow: it sends a task to measure each block, and the first photo would wait for all of them.
    listed = ray.data.from_blocks(list(blocks))
    pool = ray.data.TaskPoolStrategy(size=max(1, min(readers, len(blocks))))
    return listed.map_batches(function, batch_format="pyarrow", batch_size=None, compute=pool, num_cpus=num_cpus)


@functools.cache
def _patient() -> type:
    """A callback for Ray Data's scheduling loop: it rests as long as it holds finished blocks back.

    Without, the loop looks again at once (2.60), some hundred times a second, and takes a third of a CPU from a network
    that runs in the same process and is what the blocks wait for.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Patient(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            if any(operator._in_task_output_backpressure for operator in executor._topology):
                time.sleep(_REST_S)

    return Patient


def through_actors(
    photos: ray.data.Dataset, kind: type, arguments: tuple[Any, ...], *, actors: int, cpus: int, gpus: float
) -> ray.data.Dataset:
    """Maps tables by Ray actors.

    Ray does not start them again: where no room is left for all of them, it would wait for ever. `tables` says that one
    was lost.

    Args:
        photos: what they take.
        kind: class of the actors, which are called with a table.
        arguments: that they are made with.
        actors: how many there are.
        cpus: of each, where there are no GPUs.
        gpus: of each.
    """
    import ray.data

    with warnings.catch_warnings():  # Ray 2.60 has no other way to say it yet
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        return photos.map_batches(
            kind,
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            batch_size=ACTOR_ROWS,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=gpus or None,
            num_cpus=None if gpus else _HELD * cpus,
            max_restarts=0,
            max_task_retries=0,
        )


def tables(dataset: ray.data.Dataset, rows: int | None = None) -> Iterator[pa.Table]:
    """Runs `dataset` and yields its Arrow tables as they are ready: its own blocks, or of `rows` rows each.

    Raises:
        FlowersError: what a task or an actor raised, such as a full disk or an object store that fails.
        ProcessLost: an actor has gone, or what it made; that of a task is made again by itself.
    """
    import ray

    try:
        yield from dataset.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=1)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, ray.exceptions.RayError):
            raise ProcessLost(f"a node of the cluster or a process on it was lost ({type(cause).__name__})") from error
        if not isinstance(cause, FlowersError):
            raise
        cause.args = (first_line(cause), *cause.args[1:])  # Ray adds lines of its own
        raise cause from error


def detached(table: pa.Table, names: list[str]) -> pa.Table:
    """Copies of some columns. A view of them would keep their whole block, pixels and all, in the object store."""
    return table.select(names).take(pa.array(range(table.num_rows), pa.int64()))


def digests_array(digests: list[bytes]) -> Known:
    """Sorted SHA-256 digests as a NumPy array that workers search without copying it."""
    return np.sort(np.array(digests, dtype="S32"))


def read_block(block: pa.Table) -> pa.Table:
    """Reads and hashes the photos of one block.

    Args:
        block: schema `flowers.data.listing.LISTING`.

    Returns:
        A table of schema `BYTES`.
    """
    paths, codes, details = (block[name].to_pylist() for name in ("path", "code", "detail"))
    connections: dict[str, pafs.FileSystem] = {}
    todo = [index for index, code in enumerate(codes) if code is None]
    contents: list[bytes | None] = [None] * block.num_rows
    packed = {index: place for index in todo if (place := shards.place_of(paths[index])) is not None}
    files = [index for index in todo if index not in packed]
    if files and storage.is_remote(paths[files[0]]):
        with ThreadPoolExecutor(16) as pool:  # a bucket answers slowly but many at once
            results = list(pool.map(lambda index: read_bytes(paths[index], connections), files))
    else:
        results = [read_bytes(paths[index], connections) for index in files]
    results += map(_capped, shards.read_photos(list(packed.values())))
    for index, result in zip([*files, *packed], results, strict=True):
        if isinstance(result, BadImage):
            codes[index], details[index] = result.code, result.detail
        else:
            contents[index] = result
    columns = {
        "path": block["path"],
        "label": block["label"],
        "split": block["split"],
        "group": block["group"],
        "sha256": [None if data is None else hashlib.sha256(data).digest() for data in contents],
        "size": [None if data is None else len(data) for data in contents],
        "format": [None if data is None else images.sniff(data) for data in contents],
        "code": codes,
        "detail": details,
        "phash": [None] * block.num_rows,
        "bytes": contents,
    }
    return pa.table(columns, schema=BYTES)


def decode_block(
    block: pa.Table,
    *,
    size: int,
    max_pixels: int,
    known: Known = NONE_KNOWN,
    crops: Sequence[images.Crop] | None = None,
) -> pa.Table:
    """Decodes the photos of one block that are not in `known`.

    Args:
        block: schema `BYTES`.
        size: height and width of the result, in pixels.
        max_pixels: refuse larger pictures.
        known: sorted digests.
        crops: one for each row; None takes the middle square of all.

    Returns:
        A table of schema `PIXELS`.
    """
    codes, details = block["code"].to_pylist(), block["detail"].to_pylist()
    pixels: list[bytes | None] = [None] * block.num_rows
    hashes: list[bytes | None] = [None] * block.num_rows

    def decode(index: int, data: bytes) -> npt.NDArray[np.uint8]:
        if crops is None:
            return decoding.decode(data, size, max_pixels=max_pixels)
        # Of a photo that was decoded before, and was within the budget.
        return images.decode(data, size, max_pixels=max_pixels, crop=crops[index])

    for index, photo in decoded(block, codes, details, decode, known):
        pixels[index] = photo.tobytes()
        if crops is None:
            hashes[index] = perceptual_hash(photo)
    columns = {name: block[name] for name in ("path", "label", "split", "group", "sha256", "size", "format")}
    return pa.table({**columns, "code": codes, "detail": details, "phash": hashes, "pixels": pixels}, schema=PIXELS)


def decoded(
    block: pa.Table,
    codes: list[str | None],
    details: list[str | None],
    decode: Callable[[int, bytes], T],
    skipped: Known = NONE_KNOWN,
) -> Iterator[tuple[int, T]]:
    """Decodes the photos of one block, one after the other.

    Args:
        block: schema `BYTES`.
        codes: of its rows; rows that have one are left out, and those that turn out to be unusable get theirs.
        details: of its rows, the same.
        decode: makes something of a row's number and bytes; raises BadImage.
        skipped: sorted digests of photos that are left out.

    Yields:
        The number of a row, and what was made of it.
    """
    skip = contained(block["sha256"], skipped)
    for index, data in enumerate(block["bytes"]):
        if codes[index] is not None or skip[index]:
            continue
        try:
            made = decode(index, data.as_py())
        except BadImage as error:
            codes[index], details[index] = blame(error, block["path"][index].as_py())
        else:
            yield index, made


def blame(error: BadImage, path: str) -> tuple[str, str]:
    """Code and detail: a file that neither is a picture nor is named like one lies beside photos without being bad."""
    extension = os.path.splitext(path)[1].lower()
    if error.code == "not_a_photo" and extension in images.OTHER_EXTENSIONS:
        return "unsupported_format", f"a {extension[1:]} file is not read: convert it to JPEG or PNG"
    if error.code in ("not_a_photo", "empty") and extension not in images.EXTENSIONS | images.OTHER_EXTENSIONS:
        return "side_file", f"neither a picture nor named like one ({extension or 'no extension'})"
    return error.code, error.detail


def contained(digests: pa.ChunkedArray, known: Known) -> npt.NDArray[np.bool_]:
    """Which of `digests` are in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(digests), dtype=np.bool_)
    wanted = np.array(pc.fill_null(digests, b"\0" * 32).to_pylist(), dtype="S32")
    indices = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[indices] == wanted


def read_bytes(path: str, connections: dict[str, pafs.FileSystem] | None = None) -> bytes | BadImage:
    """The content of a photo, or why it cannot be had; files of one bucket share a connection."""
    if (place := shards.place_of(path)) is not None:
        return _capped(shards.read_photos([place])[0])
    connections = {} if connections is None else connections
    try:
        filesystem, inside = storage.resolve(path)
        if isinstance(filesystem, pafs.LocalFileSystem):
            status = os.stat(inside)
            if not stat.S_ISREG(status.st_mode):  # a pipe would never end
                return BadImage("unreadable", "not a regular file")
        else:
            filesystem = connections.setdefault(storage.bucket(path), filesystem)
        with filesystem.open_input_file(inside) as file:
            size = file.size()
            return _too_large(size) if size > MAX_BYTES else file.read()
    except OSError as error:
        return BadImage("unreadable", error.strerror or first_line(error))
    except (ValueError, InputError) as error:  # no path at all, or of an unknown scheme
        return BadImage("unreadable", first_line(error))


def _capped(data: bytes | BadImage) -> bytes | BadImage:
    return _too_large(len(data)) if isinstance(data, bytes) and len(data) > MAX_BYTES else data


def _too_large(size: int) -> BadImage:
    return BadImage("too_large", f"{size} bytes, allowed are {MAX_BYTES}")


def measured(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Bytes of some photos, and when they changed, in nanoseconds; (0, 0) for one that is not there.

    Of a photo in a shard they are the mean of its row group, and 0.
    """
    places = {index: place for index, path in enumerate(paths) if (place := shards.place_of(path)) is not None}
    found = [(0, 0)] * len(paths)
    for index, size in zip(places, shards.sizes(list(places.values())), strict=True):
        found[index] = size, 0
    connections: dict[str, pafs.FileSystem] = {}

    def measure(index: int) -> tuple[int, int]:
        try:
            filesystem, inside = storage.resolve(paths[index])
            filesystem = connections.setdefault(storage.bucket(paths[index]), filesystem)
            info = filesystem.get_file_info(inside)
            return info.size or 0, max(0, info.mtime_ns or 0)
        except (OSError, ValueError, InputError):  # reading it will say why
            return 0, 0

    files = [index for index in range(len(paths)) if index not in places]
    with ThreadPoolExecutor(32) as pool:
        for index, one in zip(files, pool.map(measure, files), strict=True):
            found[index] = one
    return found
