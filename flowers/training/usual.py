"""How usual photos are to the network that was trained: what `--unknown` will go by, from some photos of the run.

Their features come from where training had its inputs, so nothing that is cached is computed again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowers.features.views import PLAIN
from flowers.model import cuts
from flowers.model.registry import POOL
from flowers.plan import Plan
from flowers.training.inputs import Cached, Inputs, Streamed, Subset, read_subsets
from flowers.typicality import Typicality

# Photos of a subset that are looked at, at most: the job itself puts them through what was trained.
MOST = 5000


def typicality_of(plan: Plan, classes: list[str], network: Any, head: Any, deeper: bool) -> Typicality:
    """What tells photos of other things, from training photos and, for the limit, validation photos.

    Args:
        plan: of the run.
        classes: names of the outputs, in order.
        network: what `flowers.model.backbones.build_backbone` returned, with the weights of the best epoch.
        head: from its features to probabilities, with those too.
        deeper: whether the weights of the network are other ones than it started with.
    """
    train, validation = map(sample, read_subsets(plan.run, classes))
    known = _features(plan, network, train, plan.streamed, deeper)
    held = _features(plan, network, validation, plan.validation_streamed, deeper)
    return Typicality.fit(known, train.labels, held, np.asarray(head(held, training=False)))


def sample(subset: Subset) -> Subset:
    """At most `MOST` photos of a subset, of each class as large a share as it has."""
    n = len(subset.labels)
    if n <= MOST:
        return subset
    by_class = np.argsort(subset.labels, kind="stable")
    chosen = np.sort(by_class[np.linspace(0, n - 1, MOST).round().astype(np.int64)])
    return Subset.of(subset.photos.take(pa.array(chosen)), subset.labels[chosen])


def _features(plan: Plan, network: Any, subset: Subset, streamed: bool, deeper: bool) -> npt.NDArray[np.float32]:
    """The pooled features of photos: float32 [n, d]."""
    if not deeper:
        return Cached(plan, POOL, (PLAIN,), subset, (-1,)).views[0]
    body = network if streamed else cuts.tail(network, plan.config.backbone, plan.cut)
    inputs: Inputs = (
        Streamed(plan, subset, 1.0) if streamed else Cached(plan, plan.cut, (PLAIN,), subset, body.input_shape[1:])
    )
    return np.concatenate([np.asarray(body(rows, training=False)) for rows in inputs.rows()])
