"""The batcher: photos of many requests go through the network together.

While the network is busy, photos gather; when it is free, it takes as many as fit. So a single client waits for nobody,
and under load batches fill up by themselves. With `batch_wait_s` a free network also waits for more. (`serve.batch`
closes a batch before the network is free: without waiting, it makes batches of one; `docs/decisions.md` has the
figures.)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.inference.versions import LoadedModel


@dataclass(frozen=True)
class NetworkOutputs:
    """What the network made of a photo.

    Attributes:
        probabilities: float32 [K].
        heat: float32 [h, w].
        typicality: 0 to 1; NaN if nobody asked (`flowers.predictor.Outputs`).
        queue_ms: from the decoded photo to the start of its batch.
        infer_ms: time of the batch.
    """

    probabilities: npt.NDArray[np.float32]
    heat: npt.NDArray[np.float32]
    typicality: float
    queue_ms: float
    infer_ms: float


@dataclass(frozen=True)
class QueuedPhoto:
    """A decoded photo that waits for the network.

    Attributes:
        model: the version that it was decoded for, and that answers it.
        pixels: uint8 [size, size, 3].
        outputs: done when the photo is computed; cancelled when nobody waits for the answer any more.
        since: `time.perf_counter()` when it was ready.
    """

    model: LoadedModel
    pixels: npt.NDArray[np.uint8]
    outputs: asyncio.Future[NetworkOutputs]
    since: float


class Batcher:
    """Runs photos in batches, in one thread, so that the event loop stays free.

    Args:
        max_batch_size: photos a batch, at most.
        batch_wait_s: how long a free network waits for a full batch, counted from the first photo of it.
        on_batch: told the size and the seconds of each batch.

    Attributes:
        max_batch_size: as above; may be changed at any time, and holds from the next batch on.
        batch_wait_s: the same.
        failed: whether the last batch did.
    """

    def __init__(
        self,
        max_batch_size: int,
        batch_wait_s: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.batch_wait_s = batch_wait_s
        self.failed = False
        self._on_batch = on_batch
        self._queue: deque[QueuedPhoto] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None

    async def run(self, model: LoadedModel, pixels: npt.NDArray[np.uint8]) -> NetworkOutputs:
        """The outputs for a photo; one whose caller is cancelled before its batch begins is not computed.

        Raises:
            Exception: what the network raised for the batch.
        """
        outputs: asyncio.Future[NetworkOutputs] = asyncio.get_running_loop().create_future()
        self._queue.append(QueuedPhoto(model, pixels, outputs, time.perf_counter()))
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await outputs

    async def _drain(self) -> None:
        """Runs batches until nothing is queued."""
        loop = asyncio.get_running_loop()
        while self._queue:
            await self._wait()
            batch = self._take()
            if not batch:
                continue
            began = time.perf_counter()
            try:
                computed = await loop.run_in_executor(self._thread, _run, batch, began)
            except Exception as error:
                self.failed = True
                for photo in batch:
                    if not photo.outputs.done():
                        photo.outputs.set_exception(error)
                continue
            self.failed = False
            self._on_batch(len(batch), time.perf_counter() - began)
            for photo, outputs in zip(batch, computed, strict=True):
                if not photo.outputs.done():
                    photo.outputs.set_result(outputs)

    async def _wait(self) -> None:
        """Waits until a batch is full, or its first photo has waited for `batch_wait_s`, here or for the network."""
        while len(self._queue) < self._most():
            left = self._queue[0].since + self.batch_wait_s - time.perf_counter()
            if left <= 0:
                return
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    def _most(self) -> int:
        """Photos of the next batch: those that the engine computes at once, as others would only wait for them."""
        return min(self.max_batch_size, self._queue[0].model.predictor.largest_batch)

    def _take(self) -> list[QueuedPhoto]:
        """The next batch: photos of one version, in the order in which they came, without those nobody waits for."""
        batch: list[QueuedPhoto] = []
        while self._queue and len(batch) < self._most():
            photo = self._queue[0]
            if not photo.outputs.done():
                if batch and photo.model is not batch[0].model:
                    break
                batch.append(photo)
            self._queue.popleft()
        return batch


def _run(batch: list[QueuedPhoto], began: float) -> list[NetworkOutputs]:
    outputs = batch[0].model.predictor.run(np.stack([photo.pixels for photo in batch]))
    ended = time.perf_counter()
    return [
        NetworkOutputs(probabilities, heat, float(typicality), 1000 * (began - photo.since), 1000 * (ended - began))
        for photo, probabilities, heat, typicality in zip(batch, *outputs, strict=True)
    ]
