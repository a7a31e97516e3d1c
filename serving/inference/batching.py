"""Photos of many requests go through the network together.

While the network is busy, photos gather; when it is free, it takes as many as fit. So a single client waits for nobody,
and under load batches fill up by themselves. (`serve.batch` alone closes a batch before the network is free: without
waiting, it makes batches of one; `docs/decisions.md` has the figures.)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.inference.versions import Loaded


@dataclass
class Item:
    """A decoded photo on its way.

    Attributes:
        model: the version that it was decoded for, and that answers it.
        pixels: uint8 [size, size, 3].
        since: `time.perf_counter()` when it was ready.
        gone: nobody waits for the answer any more.
    """

    model: Loaded
    pixels: npt.NDArray[np.uint8]
    since: float = field(default_factory=time.perf_counter)
    gone: bool = False


@dataclass(frozen=True)
class Row:
    """What the network made of an item.

    Attributes:
        probabilities: float32 [K].
        heat: float32 [h, w].
        queue_ms: from `since` to the start of the batch.
        infer_ms: time of the batch.
    """

    probabilities: npt.NDArray[np.float32]
    heat: npt.NDArray[np.float32]
    queue_ms: float
    infer_ms: float


Waiting = tuple[Item, "asyncio.Future[Row | None]"]


class Batches:
    """Runs items in one thread, so that the event loop stays free.

    Args:
        most: photos a batch, at most; may be changed at any time.
        done: told the size and the seconds of each batch.
    """

    def __init__(self, most: int, done: Callable[[int, float], None] = lambda size, seconds: None) -> None:
        self.most = most
        self._done = done
        self._waiting: deque[Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None

    async def run(self, items: Sequence[Item]) -> list[Row | None]:
        """A row for each item, in order; None for one that is gone.

        Raises:
            Exception: what the network raised for the batch.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Row | None]] = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await asyncio.gather(*futures)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            began = time.perf_counter()
            try:
                rows: Any = await loop.run_in_executor(self._thread, _run, [item for item, _ in batch], began)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            self._done(len(batch), time.perf_counter() - began)
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)

    def _take(self) -> list[Waiting]:
        """The next batch: items of one version, in the order in which they came."""
        batch: list[Waiting] = []
        while self._waiting and len(batch) < self.most:
            item, future = self._waiting[0]
            if item.gone or future.done():
                if not future.done():
                    future.set_result(None)
            elif batch and item.model is not batch[0][0].model:
                break
            else:
                batch.append((item, future))
            self._waiting.popleft()
        return batch


def _run(items: list[Item], began: float) -> list[Row]:
    outputs = items[0].model.predictor.run(np.stack([item.pixels for item in items]))
    ended = time.perf_counter()
    return [
        Row(probabilities, heat, 1000 * (began - item.since), 1000 * (ended - began))
        for item, probabilities, heat in zip(items, *outputs, strict=True)
    ]
