"""The deployment: one process with a model, asked over HTTP."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from flowers.cluster.session import on_one_machine
from flowers.errors import BadImage, InputError
from serving.inference.admission import Admission
from serving.inference.attempts import Attempts
from serving.inference.batching import Batcher
from serving.inference.decoding import Decoders
from serving.inference.versions import LoadedModel, Versions
from serving.options import ServeOptions, Tuning
from serving.sampling import Sampler
from serving.service import Answer, BadRequest, ModelDescription, Refusal, UnknownVersion

T = TypeVar("T")


class Classifier:
    """Answers photos with the version that is loaded; implements `serving.service.Service`.

    Args:
        options: `serving.options.ServeOptions` as a dict. The first version is loaded and warm when this returns.

    Attributes:
        admission: what is on its way.
        versions: the version that answers.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = ServeOptions(**options)
        if on_one_machine():
            _keep_to_this_machine()
        self.max_items = self.options.max_items
        self._wrong_tuning: str | None = None
        from serving.metrics import FOLDER, Metrics

        self.versions = Versions(self.options, Attempts(os.environ[FOLDER]))

        self.metrics = Metrics(self)
        folder = self.options.sample_to
        self._sampler = (
            Sampler(folder, self.options.sample_rate, self.options.sample_max_bytes) if folder is not None else None
        )
        self.admission = Admission(self.options, self.versions.current.pace)
        self.metrics.update_gauges()
        tuning = self.options.tuning
        self._batcher = Batcher(tuning.max_batch_size, tuning.batch_wait_ms / 1000, self._record_batch)
        self._decoders = Decoders(self.options)
        if self.options.watch_s:
            threading.Thread(target=self._watch, name="watch versions", daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        from serving.http.app import build

        return build(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes what can be tuned while running. Never raises: Ray Serve would end the replica for it."""
        try:
            tuning = Tuning(**user_config)
        except (InputError, TypeError) as error:
            self._wrong_tuning = f"user_config is refused: {error}"
            return
        self._wrong_tuning = None
        self._batcher.max_batch_size = tuning.max_batch_size
        self._batcher.batch_wait_s = tuning.batch_wait_ms / 1000

    async def classify(
        self, photos: Sequence[bytes], version: int | None = None
    ) -> tuple[ModelDescription, list[Answer | Refusal]]:
        """See `serving.service.Service`."""
        with (
            self._admitted(len(photos), version) as model,
            self._decoders.take(photos, model.predictor.bundle.image_size) as quick,
        ):
            return self._describe(model), await _all(map(self._photo, [model] * len(photos), photos, quick))

    async def classify_pixels(
        self, pixels: npt.NDArray[np.uint8], version: int | None = None
    ) -> tuple[ModelDescription, list[Answer]]:
        """See `serving.service.Service`."""
        with self._admitted(len(pixels), version) as model:
            size = model.predictor.bundle.image_size
            if pixels.shape[1:] != (size, size, 3):
                raise BadRequest(f"received pixels of shape {list(pixels.shape)}, required is [n, {size}, {size}, 3]")
            return self._describe(model), await _all(self._answer(model, photo, 0.0) for photo in pixels)

    def describe(self) -> ModelDescription:
        """See `serving.service.Service`."""
        return self._describe(self.versions.current)

    def _describe(self, model: LoadedModel) -> ModelDescription:
        bundle = model.predictor.bundle
        return ModelDescription(
            name=self.options.name,
            version=model.number,
            versions=self.versions.numbers,
            classes=bundle.classes,
            image_size=bundle.image_size,
            manifest=bundle.manifest,
            last_reload_error=self.versions.error or self._wrong_tuning,
            keeps_photos=self._sampler is not None,
            unknown=self.options.unknown,
        )

    @property
    def ready(self) -> bool:
        """Whether the network answers: a replica gets requests only with a model that is loaded and warm."""
        return not self._batcher.failed

    async def check_health(self) -> None:
        """Ray Serve asks from time to time, and starts another replica after an error."""
        if self._batcher.failed:
            model = self.versions.current
            size = model.predictor.bundle.image_size
            await self._batcher.run(model, np.zeros((size, size, 3), np.uint8))

    @contextmanager
    def _admitted(self, count: int, version: int | None) -> Iterator[LoadedModel]:
        """Takes `count` photos for the version that is loaded, or refuses them all."""
        model = self.versions.current
        if version is not None and version != model.number:
            raise UnknownVersion(f"version {version} is not loaded, {model.number} is")
        with self.admission.take(count):
            yield model

    async def _photo(self, model: LoadedModel, photo: bytes, quick: bool) -> Answer | Refusal:
        began = time.perf_counter()
        try:
            pixels = await self._decoders.decode(model.predictor, photo, quick)
        except BadImage as error:
            self.metrics.refusal(error.code)
            return Refusal(error.code, error.detail)
        answer = await self._answer(model, pixels, 1000 * (time.perf_counter() - began))
        if self._sampler:
            self._sampler.offer(photo, answer, model.number)
        return answer

    async def _answer(self, model: LoadedModel, pixels: npt.NDArray[np.uint8], decode_ms: float) -> Answer:
        outputs = await self._batcher.run(model, pixels)
        prediction = model.predictor.prediction(outputs.probabilities, outputs.heat, outputs.typicality)
        self.metrics.prediction(prediction.label, prediction.score)
        return Answer(
            **vars(prediction),
            queue_ms=outputs.queue_ms,
            decode_ms=decode_ms,
            infer_ms=outputs.infer_ms,
        )

    def _record_batch(self, photos: int, seconds: float) -> None:
        self.metrics.batch(photos, seconds)
        self.admission.learn(photos, seconds)

    def _watch(self) -> None:
        while True:
            time.sleep(self.options.watch_s)
            self.versions.refresh()
            self.metrics.update_gauges()


class ListeningClassifier(Classifier):
    """A replica that speaks HTTP itself.

    Args:
        options: as above.
        port: path of the `serving.http.port.Port` that it takes connections from.
    """

    def __init__(self, options: dict[str, Any], port: str) -> None:
        super().__init__(options)
        from serving.http.app import build
        from serving.http.listener import Listener
        from serving.http.overload import EarlyRefusal
        from serving.http.port import take

        self._listener = Listener(build(self), take(port), EarlyRefusal(self), self.options.body_timeout_s)

    async def check_health(self) -> None:
        """As above."""
        await super().check_health()
        if not self._listener.alive:
            raise RuntimeError("the listener has ended")

    async def __del__(self) -> None:
        """Ray Serve calls and awaits it when it ends a replica."""
        await self._listener.end()


def _keep_to_this_machine() -> None:
    """Makes Ray Serve's port for other replicas, which it opens after this, one of the loopback address.

    It is bound to all addresses of the machine (2.60), and no option says otherwise.
    """
    from ray.serve._private import replica

    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; what is still running is cancelled if one fails."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
