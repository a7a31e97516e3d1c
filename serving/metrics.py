"""Metrics for Prometheus.

Replicas on one machine write into files of one folder, so that any of them tells of all.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from starlette.types import Message, Scope, Send

from flowers.bundle import Bundle
from serving.http.responses import error_code

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SCORES = tuple(tenth / 10 for tenth in range(1, 11))
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def default_folder(name: str) -> str:
    """Where the replicas of a model keep their counts on each machine, unless the variable `FOLDER` says otherwise."""
    return os.path.join(tempfile.gettempdir(), f"flowers-metrics-{os.getuid()}-{name}")


def label_value(label: str) -> str:
    """The name of a class as the value of a label, which is UTF-8."""
    return label.encode("utf-8", "replace").decode()


class Metrics:
    """The counts of one replica.

    Args:
        service: `serving.replica.Classifier`.
    """

    def __init__(self, service: Any) -> None:
        folder = os.environ[FOLDER]
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for file in os.listdir(folder):
            process = file.removesuffix(".db").rsplit("_", 1)[-1]
            if process.isdecimal() and not os.path.exists(f"/proc/{process}"):
                multiprocess.mark_process_dead(int(process), folder)  # type: ignore[no-untyped-call]
        self._service = service
        own = CollectorRegistry()
        self._requests = Counter("flowers_requests", "Requests answered.", ("route", "status"), registry=own)
        self._seconds = Histogram(
            "flowers_request_seconds", "Time of a request.", ("route",), buckets=_SECONDS, registry=own
        )
        self._errors = Counter("flowers_errors", "Requests and photos refused.", ("of", "code"), registry=own)
        self._sizes = Histogram("flowers_batch_size", "Photos in a batch.", buckets=_BATCH_SIZES, registry=own)
        self._batch_s = Histogram("flowers_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=own)
        self._waiting = Gauge(
            "flowers_waiting", "Photos taken and not answered yet.", registry=own, multiprocess_mode="livesum"
        )
        self._held = Gauge(
            "flowers_held_bytes", "Bytes of requests that are held.", registry=own, multiprocess_mode="livesum"
        )
        self._version = Gauge(
            "flowers_model_version", "The version that answers.", registry=own, multiprocess_mode="liveall"
        )
        self._failed = Gauge(
            "flowers_reload_failed", "1 while the newest version is refused.", registry=own, multiprocess_mode="livemax"
        )
        self._predicted = Counter("flowers_predictions", "Photos by the class they got.", ("label",), registry=own)
        self._score = Histogram("flowers_score", "Score of the class that a photo got.", buckets=_SCORES, registry=own)
        self._unknown = Counter("flowers_unknown", "Photos that are none of the classes.", registry=own)
        self._allowed = Gauge(
            "flowers_validation_unknown_share",
            "Share of validation photos that would be none of the classes: what theirs is to be compared with.",
            registry=own,
            multiprocess_mode="livemax",
        )
        self._expected = Gauge(
            "flowers_validation_share",
            "Share of validation photos by the class they got: what predictions are to be compared with.",
            ("label",),
            registry=own,
            multiprocess_mode="livemax",
        )
        self._accuracy = Gauge(
            "flowers_validation_accuracy", "Accuracy on validation photos.", registry=own, multiprocess_mode="livemax"
        )
        self._own = own
        self._compared: object = None

    def prediction(self, label: str | None, score: float) -> None:
        """Counts an answer; one without a label is that of a photo of none of the classes."""
        if label is None:
            self._unknown.inc()
            return
        self._predicted.labels(label_value(label)).inc()
        self._score.observe(score)

    def batch(self, size: int, seconds: float) -> None:
        """Counts a batch."""
        self._sizes.observe(size)
        self._batch_s.observe(seconds)

    def refusal(self, code: str) -> None:
        """Counts a photo that was refused."""
        self._errors.labels("photo", code).inc()

    @contextmanager
    def request(self, scope: Scope) -> Iterator[Callable[[Send], Send]]:
        """Counts a request; what is given is put around `send` to see its status."""
        began, status = time.perf_counter(), 499  # the client hung up

        def seen(send: Send) -> Send:
            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            return sending

        try:
            yield seen
        finally:
            # The pattern, not the path, which strangers choose: else each would make a new time series.
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, str(status)).inc()
            if code := error_code(scope):
                self._errors.labels("request", code).inc()
            self._seconds.labels(route).observe(time.perf_counter() - began)

    def update_gauges(self) -> None:
        """Notes how this replica is now: any other one on the machine may be asked for it."""
        self._waiting.set(self._service.admission.waiting)
        self._held.set(self._service.admission.held)
        model = self._service.versions.current
        self._version.set(model.number)
        self._failed.set(self._service.versions.error is not None)
        self._allowed.set(self._service.options.unknown or 0)
        if model is not self._compared:
            self._compared = model
            self._compare_with(model.predictor.bundle)

    def _compare_with(self, bundle: Bundle) -> None:
        """Notes how a bundle did on the validation photos of its run."""
        confusion = np.array(bundle.manifest.get("validation", {}).get("confusion_matrix", []), np.float64)
        if confusion.shape == (len(bundle.classes),) * 2 and confusion.sum():
            for label, share in zip(bundle.classes, confusion.sum(axis=0) / confusion.sum(), strict=True):
                self._expected.labels(label_value(label)).set(share)
            self._accuracy.set(confusion.trace() / confusion.sum())

    def text(self) -> bytes:
        """All counts of this machine, in Prometheus' text format."""
        self.update_gauges()
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
