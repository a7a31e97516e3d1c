"""Photos gather while the network is busy."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from serving.inference.batching import Batches, Item, Row
from serving.inference.versions import Loaded


@dataclass
class Network:
    """Doubles numbers; each batch takes until it is let go."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1000))
    batches: list[list[int]] = field(default_factory=list)

    def run(self, pixels: Any) -> tuple[Any, Any]:
        assert self.go.acquire(timeout=20)
        self.batches.append(pixels[:, 0].tolist())
        if (pixels < 0).any():
            raise ValueError("a negative photo")
        return 2.0 * pixels, pixels


def loaded(network: Network, number: int = 1) -> Loaded:
    return Loaded(number, "", network)  # type: ignore[arg-type]


def item(model: Loaded, value: int) -> Item:
    return Item(model, np.array([value]))


def values(rows: list[Row | None]) -> list[float | None]:
    return [None if row is None else float(row.probabilities[0]) for row in rows]


def test_what_comes_while_the_network_is_busy_is_one_batch() -> None:
    network = Network(threading.Semaphore(0))
    model = loaded(network)

    async def ask() -> list[list[float | None]]:
        batches = Batches(4)
        tasks = [asyncio.create_task(batches.run([item(model, 0)]))]
        await asyncio.sleep(0.05)  # the network has taken the first
        tasks += [asyncio.create_task(batches.run([item(model, value)])) for value in range(1, 7)]
        tasks.append(asyncio.create_task(batches.run([item(model, 7), item(model, 8)])))
        await asyncio.sleep(0.05)
        network.go.release(10)
        return [values(rows) for rows in await asyncio.gather(*tasks)]

    assert asyncio.run(ask()) == [[0], [2], [4], [6], [8], [10], [12], [14, 16]]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_nobody_is_computed_who_has_gone() -> None:
    network = Network(threading.Semaphore(0))
    model = loaded(network)

    async def ask() -> list[float | None]:
        batches = Batches(2)
        first = asyncio.create_task(batches.run([item(model, 0)]))
        await asyncio.sleep(0.05)
        items = [item(model, value) for value in (1, 2, 3, 4)]
        task = asyncio.create_task(batches.run(items))
        hung_up = asyncio.create_task(batches.run([item(model, 9)]))
        await asyncio.sleep(0.05)
        items[0].gone = items[2].gone = True
        hung_up.cancel()
        network.go.release(10)
        await first
        return values(await task)

    assert asyncio.run(ask()) == [None, 4, None, 8]
    assert network.batches == [[0], [2, 4]]


def test_a_batch_is_of_one_version() -> None:
    old, new = Network(threading.Semaphore(0)), Network()

    async def ask() -> list[float | None]:
        batches = Batches(8)
        first = asyncio.create_task(batches.run([item(loaded(old), 0)]))
        await asyncio.sleep(0.05)
        before, after = loaded(old), loaded(new, 2)
        task = asyncio.create_task(batches.run([item(model, at) for at, model in enumerate((before, before, after))]))
        await asyncio.sleep(0.05)
        old.go.release(10)
        await first
        return values(await task)

    assert asyncio.run(ask()) == [0, 2, 4]
    assert (old.batches, new.batches) == ([[0], [0, 1]], [[2]])


def test_an_error_is_told_to_its_batch_only() -> None:
    network = Network()
    model = loaded(network)

    async def ask() -> list[float | None]:
        batches = Batches(2)
        with pytest.raises(ValueError, match="negative"):
            await batches.run([item(model, -1), item(model, 1)])
        return values(await batches.run([item(model, 5)]))

    assert asyncio.run(ask()) == [10]


def test_times_and_sizes_are_told() -> None:
    seen: list[tuple[int, float]] = []
    network = Network()

    async def ask() -> list[Row | None]:
        return await Batches(3, lambda size, seconds: seen.append((size, seconds))).run(
            [item(loaded(network), value) for value in (1, 2)]
        )

    for row in asyncio.run(ask()):
        assert row is not None
        assert row.queue_ms >= 0
        assert row.infer_ms > 0
    assert sum(size for size, _ in seen) == 2
