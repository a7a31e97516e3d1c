"""The batcher: photos gather while the network is busy, and for `batch_wait_s` while it is free."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowers.predictor import Outputs
from serving.inference.batching import Batcher, NetworkOutputs
from serving.inference.versions import LoadedModel

WAIT_S = 5.0  # much longer than the machine may take to run a batch


@dataclass
class Network:
    """Doubles numbers; each batch takes until it is let go."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1000))
    batches: list[list[int]] = field(default_factory=list)
    largest_batch: int = 1000

    def run(self, pixels: Any) -> Outputs:
        assert self.go.acquire(timeout=20)
        self.batches.append(pixels[:, 0].tolist())
        if (pixels < 0).any():
            raise ValueError("a negative photo")
        return Outputs(2.0 * pixels, pixels, pixels[:, 0])


def loaded(network: Network, number: int = 1) -> LoadedModel:
    return LoadedModel(number, "", network)  # type: ignore[arg-type]


def asked(batcher: Batcher, model: LoadedModel, *values: int) -> list[asyncio.Task[NetworkOutputs]]:
    return [asyncio.create_task(batcher.run(model, np.array([value]))) for value in values]


async def taken(batcher: Batcher, model: LoadedModel, *values: int) -> list[asyncio.Task[NetworkOutputs]]:
    """The same, and the network is busy with them."""
    tasks = asked(batcher, model, *values)
    await asyncio.sleep(0.05)
    return tasks


async def doubled(tasks: list[asyncio.Task[NetworkOutputs]]) -> list[float]:
    return [float(outputs.probabilities[0]) for outputs in await asyncio.gather(*tasks)]


def test_what_comes_while_the_network_is_busy_is_one_batch() -> None:
    network = Network(threading.Semaphore(0))
    model = loaded(network)

    async def ask() -> list[float]:
        batcher = Batcher(4)
        tasks = await taken(batcher, model, 0)
        tasks += asked(batcher, model, *range(1, 9))
        await asyncio.sleep(0.05)
        network.go.release(10)
        return await doubled(tasks)

    assert asyncio.run(ask()) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_no_batch_is_larger_than_what_the_engine_computes_at_once() -> None:
    network = Network(threading.Semaphore(0), largest_batch=2)
    model = loaded(network)

    async def ask() -> list[float]:
        batcher = Batcher(4)
        tasks = await taken(batcher, model, 0)
        tasks += asked(batcher, model, 1, 2, 3)
        await asyncio.sleep(0.05)
        network.go.release(10)
        return await doubled(tasks)

    assert asyncio.run(ask()) == [0, 2, 4, 6]
    assert network.batches == [[0], [1, 2], [3]]


def test_nobody_is_computed_who_has_gone() -> None:
    network = Network(threading.Semaphore(0))
    model = loaded(network)

    async def ask() -> list[float]:
        batcher = Batcher(2)
        first = asked(batcher, model, 0)
        await asyncio.sleep(0.05)
        tasks = asked(batcher, model, 1, 2, 3, 4, 9)
        await asyncio.sleep(0.05)
        gone = [tasks[0], tasks[2], tasks[4]]
        for task in gone:
            task.cancel()
        network.go.release(10)
        await asyncio.gather(*first)
        answered = await doubled([tasks[1], tasks[3]])
        await asyncio.wait(gone)
        assert all(task.cancelled() for task in gone)
        return answered

    assert asyncio.run(ask()) == [4, 8]
    assert network.batches == [[0], [2, 4]]


def test_a_batch_is_of_one_version() -> None:
    old, new = Network(threading.Semaphore(0)), Network()

    async def ask() -> list[float]:
        batcher = Batcher(8)
        first = asked(batcher, loaded(old), 0)
        await asyncio.sleep(0.05)
        before, after = loaded(old), loaded(new, 2)
        tasks = asked(batcher, before, 0, 1) + asked(batcher, after, 2)
        await asyncio.sleep(0.05)
        old.go.release(10)
        await asyncio.gather(*first)
        return await doubled(tasks)

    assert asyncio.run(ask()) == [0, 2, 4]
    assert (old.batches, new.batches) == ([[0], [0, 1]], [[2]])


def test_an_error_is_told_to_its_batch_only() -> None:
    network = Network()
    model = loaded(network)

    async def ask() -> list[float]:
        batcher = Batcher(2)
        for found in await asyncio.gather(*asked(batcher, model, -1, 1), return_exceptions=True):
            assert isinstance(found, ValueError)
            assert "negative" in str(found)
        return await doubled(asked(batcher, model, 5))

    assert asyncio.run(ask()) == [10]


def test_times_and_sizes_are_told() -> None:
    seen: list[tuple[int, float]] = []
    network = Network()

    async def ask() -> list[NetworkOutputs]:
        batcher = Batcher(3, on_batch=lambda size, seconds: seen.append((size, seconds)))
        return await asyncio.gather(*asked(batcher, loaded(network), 1, 2))

    for outputs in asyncio.run(ask()):
        assert outputs.queue_ms >= 0
        assert outputs.infer_ms > 0
    assert sum(size for size, _ in seen) == 2


def test_a_free_network_waits_for_more() -> None:
    network = Network()
    model = loaded(network)

    async def ask() -> tuple[list[float], float]:
        batcher = Batcher(8, batch_wait_s=0.5)
        began = time.perf_counter()
        tasks = asked(batcher, model, 1)
        for value in (2, 3):
            await asyncio.sleep(0.05)
            tasks += asked(batcher, model, value)
        return await doubled(tasks), time.perf_counter() - began

    answered, seconds = asyncio.run(ask())
    assert answered == [2, 4, 6]
    assert network.batches == [[1, 2, 3]]
    assert seconds >= 0.5, "counted from the first photo, and not again from each"


def test_a_full_batch_waits_for_nobody() -> None:
    network = Network()
    model = loaded(network)

    async def ask() -> tuple[list[float], float]:
        batcher = Batcher(2, batch_wait_s=WAIT_S)
        began = time.perf_counter()
        tasks = asked(batcher, model, 1)
        await asyncio.sleep(0.05)
        tasks += asked(batcher, model, 2)
        return await doubled(tasks), time.perf_counter() - began

    answered, seconds = asyncio.run(ask())
    assert answered == [2, 4]
    assert network.batches == [[1, 2]]
    assert seconds < WAIT_S


def test_time_in_the_queue_counts_as_waiting() -> None:
    """Photos that gathered while the network was busy are not held up once more."""
    network = Network(threading.Semaphore(0))
    model = loaded(network)

    async def ask() -> float:
        batcher = Batcher(8)
        first = await taken(batcher, model, 0)
        batcher.batch_wait_s = 0.5
        tasks = asked(batcher, model, 1, 2)
        await asyncio.sleep(0.55)
        network.go.release(10)
        began = time.perf_counter()
        assert await doubled(first + tasks) == [0, 2, 4]
        return time.perf_counter() - began

    assert asyncio.run(ask()) < 0.5
    assert network.batches == [[0], [1, 2]]


def test_both_limits_hold_from_the_next_batch_on() -> None:
    network = Network(threading.Semaphore(0))
    model = loaded(network)

    async def ask() -> None:
        batcher = Batcher(4)
        tasks = await taken(batcher, model, 0)
        tasks += asked(batcher, model, 1, 2, 3)
        batcher.max_batch_size, batcher.batch_wait_s = 2, WAIT_S
        await asyncio.sleep(0.05)
        network.go.release(10)
        await asyncio.gather(*tasks[:3])
        assert not tasks[3].done(), "it waits for another one"
        tasks += asked(batcher, model, 4)
        assert await doubled(tasks) == [0, 2, 4, 6, 8]

    asyncio.run(ask())
    assert network.batches == [[0], [1, 2], [3, 4]]


def test_who_goes_while_a_free_network_waits_is_not_computed() -> None:
    network = Network()
    model = loaded(network)

    async def ask() -> None:
        batcher = Batcher(4, batch_wait_s=0.1)
        (task,) = asked(batcher, model, 1)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.15)
        assert await doubled(asked(batcher, model, 2)) == [4]

    asyncio.run(ask())
    assert network.batches == [[2]]
