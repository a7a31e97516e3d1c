"""Near-duplicates: the same picture in two files, re-encoded, resized, mirrored or cropped a little.

A perceptual hash of each photo is the signs of its lowest spatial frequencies (a discrete cosine transform, as in the
pHash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with 16 x 16 frequencies
instead of 8 x 8). A mirrored picture has the same frequencies with every second column's signs turned, so its hash
follows from this one. Pairs are found in tables of randomly chosen bits (locality-sensitive hashing), not by comparing
each with each, and taken if few enough bits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from flowers.data.groups import join

# Part of the cache's key: changes with any bit of a hash.
VERSION: Final = "1"
BYTES: Final = 32

_SIDE: Final = 32  # to which a photo is shrunk
_FREQUENCIES: Final = 16
_COARSE: Final = 8
_FLATTEST: Final = 4.0  # grey levels of standard deviation: a flatter picture has noise for frequencies
# At most so many bits may differ, of the 63 of the lowest frequencies and of all 255. Among 1,200 photos of flowers
# only real pairs are so near; unrelated pairs become a hundredth with each 17 bits less (docs/decisions.md), and
# tenfold photos are hundredfold pairs.
_MOST_COARSE: Final = 14
_MOST: Final = 76
_MOST_OF: Final = 1200
_FEWER_FOR_TENFOLD: Final = 17
_FEWEST: Final = 30
_TABLES: Final = 24
_NEIGHBOURS: Final = 24  # with which a photo is compared in one bucket

_COSINES: Final = np.cos(np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5), dtype=np.float32)
_MIRRORED: Final = np.packbits(np.tile(np.arange(_FREQUENCIES) % 2 == 1, _FREQUENCIES))
_IS_COARSE: Final = np.packbits(np.pad(np.ones((_COARSE, _COARSE), bool), (0, _FREQUENCIES - _COARSE)).reshape(-1))


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> bytes | None:
    """The hash of a photo, or None for one that is flat: all flat pictures look alike.

    Args:
        pixels: uint8 [H, W, 3], RGB.

    Returns:
        `BYTES` bytes: a bit for each of 16 x 16 frequencies, row by row (vertical), the constant part's 0.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    if grey.std() < _FLATTEST:
        return None
    positive = (_COSINES @ grey @ _COSINES.T) > 0
    positive[0, 0] = False
    return np.packbits(positive).tobytes()


def group(hashes: Sequence[bytes | None]) -> npt.NDArray[np.int64]:
    """Groups of near-duplicates: photos that are alike, directly or by others between.

    Args:
        hashes: of n photos; None is alone.

    Returns:
        int64 [n], the same number for photos of one group: that of the first of them.
    """
    groups = np.arange(len(hashes), dtype=np.int64)
    present = np.flatnonzero([value is not None for value in hashes])
    if len(present) > 1:
        codes = np.frombuffer(b"".join(value for value in hashes if value is not None), np.uint8).reshape(-1, BYTES)
        groups[present] = present[_group(codes)]
    return groups


def _group(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The first row of the group of each row; rows are alike if one is like the other or like its mirror image."""
    count = len(codes)
    both = np.concatenate([codes, codes ^ _MIRRORED])
    # The lowest frequencies are the first byte of each of the first rows; the very first bit is the constant part's.
    bits = np.unpackbits(both[:, : 2 * _COARSE : 2], axis=1)[:, 1:]
    most = max(_MOST - _FEWER_FOR_TENFOLD * max(0.0, float(np.log10(count / _MOST_OF))), _FEWEST)
    width = int(np.clip(np.log2(count) - 1, 4, 24))
    random = np.random.default_rng(0)
    first = np.arange(count, dtype=np.int64)
    for _ in range(_TABLES):
        chosen = random.choice(bits.shape[1], width, replace=False)
        keys = bits[:, chosen].astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
        order = np.argsort(keys, kind="stable")
        ordered, rows = keys[order], order % count
        for step in range(1, min(_NEIGHBOURS, 2 * count - 1) + 1):
            same = np.flatnonzero(ordered[step:] == ordered[:-step])
            if not len(same):
                break
            # Of a picture that is there a thousand times, each copy is compared with a few only.
            apart = same[first[rows[same]] != first[rows[same + step]]]
            near = apart[_alike(both[order[apart]], both[order[apart + step]], most)]
            if len(near):
                join(first, zip(rows[near].tolist(), rows[near + step].tolist(), strict=True))
    return first


def _alike(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8], most: float) -> npt.NDArray[np.bool_]:
    apart = one ^ other
    coarse = np.bitwise_count(apart & _IS_COARSE).sum(axis=1, dtype=np.int64)
    every = np.bitwise_count(apart).sum(axis=1, dtype=np.int64)
    return (coarse <= _MOST_COARSE) & (every <= most)
