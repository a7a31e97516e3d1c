"""A store of objects, once for all tests that need one, and the same behind a proxy that fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3 import store
from tests.s3.store import Store

BUCKET = "flowers"


@pytest.fixture(scope="session")
def s3() -> Iterator[Store]:
    with store.store() as started:
        started.make_bucket(BUCKET)
        yield started


@pytest.fixture(scope="session")
def faulty(s3: Store) -> Iterator[Store]:
    with store.faulty(s3, seed=0) as started:
        yield started
