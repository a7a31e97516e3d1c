"""Decoding of requests' photos: quick ones in threads, all others in processes that can be ended.

Both have a queue of their own, so a photo that takes two seconds delays none that takes two milliseconds.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from flowers.data import images
from flowers.data.complexity import is_quick
from flowers.data.decoding import DecoderProcess
from flowers.predictor import Predictor
from serving.options import ServeOptions
from serving.service import Overloaded

# Threads and processes that decode, for each CPU. They take their time from the network, which needs several times as
# much; the processes only what nobody else wants.
_DECODERS = 0.5
_NICENESS = 10
# How much a photo changes the known time of a slow one.
_NEWEST = 0.2


class Decoders:
    """Decodes the photos of one replica.

    Args:
        options: CPUs, and how long a photo may wait.
    """

    def __init__(self, options: ServeOptions) -> None:
        count = max(1, int(_DECODERS * options.cpus))
        self._max_wait_s = options.max_wait_s
        self._threads = ThreadPoolExecutor(count, "decode")
        self._slow_threads = ThreadPoolExecutor(count, "decode slowly")
        self._processes: queue.SimpleQueue[DecoderProcess] = queue.SimpleQueue()
        for _ in range(count):
            self._processes.put(DecoderProcess(_NICENESS))
        self._count = count
        self._slow_waiting = 0
        self._slow_s = 0.1

    @contextmanager
    def take(self, photos: Sequence[bytes], size: int) -> Iterator[list[bool]]:
        """Tells which photos are quick to decode to `size` pixels a side, and counts the others until they are done.

        Raises:
            Overloaded: they would wait too long for those before them.
        """
        quick = [is_quick(images.sniff(photo), photo, size) for photo in photos]
        slow = len(quick) - sum(quick)
        wait_s = self._slow_waiting * self._slow_s / self._count
        if slow and wait_s > self._max_wait_s:
            raise Overloaded(
                f"photos that take long to decode would wait {wait_s:.1f} s, at most {self._max_wait_s:g} s; try again"
            )
        self._slow_waiting += slow
        try:
            yield quick
        finally:
            self._slow_waiting -= slow

    async def decode(self, predictor: Predictor, photo: bytes, quick: bool) -> npt.NDArray[np.uint8]:
        """The pixels that the network sees of a photo: uint8 [size, size, 3].

        Raises:
            BadImage: it is no usable photo, or takes too long.
        """
        loop = asyncio.get_running_loop()
        if quick:
            return await loop.run_in_executor(self._threads, _decode, predictor, photo)
        return await loop.run_in_executor(self._slow_threads, self._decode_slowly, predictor, photo)

    def _decode_slowly(self, predictor: Predictor, photo: bytes) -> npt.NDArray[np.uint8]:
        began, process = time.perf_counter(), self._processes.get()
        try:
            return process.decode(photo, predictor.bundle.image_size, predictor.max_pixels)[0]
        finally:
            self._processes.put(process)
            self._slow_s += (time.perf_counter() - began - self._slow_s) * _NEWEST


def _decode(predictor: Predictor, photo: bytes) -> npt.NDArray[np.uint8]:
    return images.decode(photo, predictor.bundle.image_size, max_pixels=predictor.max_pixels)
