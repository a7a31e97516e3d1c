"""A phase made ready: what it trains, from which inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers.evaluation.metrics import Counts
from flowers.features.views import PLAIN
from flowers.model import backbones, classifier, cuts
from flowers.model.augmentation import Augmenter
from flowers.model.gradients import speed_up
from flowers.model.registry import POOL
from flowers.plan import Plan
from flowers.training import failures
from flowers.training.batches import share
from flowers.training.checkpoints import Checkpoint
from flowers.training.inputs import CROP_SCALE, Cached, Inputs, Streamed, Subset, cached_both
from flowers.training.schedule import Phase
from flowers.training.step import Step, Trained, summed

Standard = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Worker:
    """One training process.

    Attributes:
        rank: its number.
        count: how many there are.
        strategy: the `tf.distribute` strategy that they share.
    """

    rank: int
    count: int
    strategy: Any


@dataclass(frozen=True)
class PreparedPhase:
    """A phase made ready in one worker.

    Attributes:
        phase: which.
        step: what it trains.
        train: inputs of the training photos.
        validation: inputs of the validation photos.
        standard: mean and variance of the pooled features, each float32 [d].
        traced: whether TensorFlow has traced the step, for which its first call takes seconds.
    """

    phase: Phase
    step: Step
    train: Inputs
    validation: Inputs
    standard: Standard
    traced: bool = False

    def arrays(self, counts: Counts) -> dict[str, npt.NDArray[Any]]:
        """What a checkpoint keeps: all that changed, and the counts of the validation."""
        mean, variance = self.standard
        return {
            **self.step.state(),
            "standardize:mean": mean,
            "standardize:variance": variance,
            "validation": counts.to_vector(),
        }


def prepare_phase(
    plan: Plan, phase: Phase, subsets: Sequence[Subset], standard: Standard | None, classes: int, worker: Worker
) -> PreparedPhase:
    """Makes a phase ready in one worker.

    Args:
        plan: of the run.
        phase: which.
        subsets: training and validation photos, those that this worker needs.
        standard: mean and variance of an earlier phase or checkpoint; None, for the head only, measures them.
        classes: number of outputs, K.
        worker: this process.
    """
    if phase.name == "head":
        train, validation = cached_both(plan, POOL, plan.head_views, subsets, (-1,))
        measured = standard or _measured(train, subsets[0], worker)
        return PreparedPhase(
            phase, _step(plan, phase, lambda: _head(plan, measured, classes), worker), train, validation, measured
        )
    if standard is None:
        raise ValueError("the tail is trained after the head: there must be a checkpoint")
    step = _step(plan, phase, lambda: _tail(plan, standard, classes, worker), worker)
    return PreparedPhase(phase, step, *_at_cut(plan, subsets, step.trained), standard)


def _measured(train: Cached, subset: Subset, worker: Worker) -> Standard:
    """Mean and variance of the pooled features of all training photos, of which each worker has its share."""
    mine = share(len(subset.labels), worker.rank, worker.count)
    own = slice(mine.start - subset.part.start, mine.stop - subset.part.start)
    return classifier.standardization(*(view[own] for view in train.views), total=summed(worker.strategy))


def standard_of(found: Checkpoint) -> Standard:
    """Mean and variance of the pooled features that a checkpoint was trained with."""
    return found.arrays["standardize:mean"], found.arrays["standardize:variance"]


def _step(plan: Plan, phase: Phase, build: Any, worker: Worker) -> Step:
    config = plan.config.replace(label_smoothing=phase.label_smoothing)
    return Step(config, worker.strategy, build, worker.rank, worker.count, failures.microbatches(plan.run))


def _head(plan: Plan, standard: Standard, classes: int) -> Trained:
    return Trained(classifier.build_head(*standard, classes, plan.config.dropout))


def _tail(plan: Plan, standard: Standard, classes: int, worker: Worker) -> Trained:
    config = plan.config
    network = backbones.build_backbone(config.backbone, plan.weights, plan.image_size, plan.precision)
    speed_up(network.get_layer(config.backbone))
    upper = cuts.tail(network, config.backbone, plan.cut)
    variables = cuts.trained_variables(network, config.backbone, plan.cut)
    augment = None
    if config.augmentation in CROP_SCALE:
        augment = Augmenter(
            config.augmentation,
            size=plan.image_size,
            batch_size=config.batch_size,
            workers=worker.count,
            rank=worker.rank,
            seed=config.seed,
        )
    return Trained(
        classifier.build_head(*standard, classes, config.dropout),
        body=network if plan.streamed else upper,
        validation_body=network if plan.validation_streamed else upper,
        groups=tuple(
            (config.layer_decay ** (len(variables) - number), group) for number, group in enumerate(variables)
        ),
        augment=augment,
    )


def _at_cut(plan: Plan, subsets: Sequence[Subset], trained: Trained) -> tuple[Inputs, Inputs]:
    """The tail's inputs: cached outputs at the cut, or pixels where they are streamed."""
    if not plan.streamed:
        return cached_both(plan, plan.cut, plan.views, subsets, trained.body.input_shape[1:])
    # Workers hold the CPUs they were given: a reader that asked Ray for a whole one might wait for ever.
    cpus = 1.0 if plan.in_process else 0.0
    train = Streamed(plan, subsets[0], cpus)
    if plan.validation_streamed:
        return train, Streamed(plan, subsets[1], cpus)
    return train, Cached(plan, plan.cut, (PLAIN,), subsets[1], trained.validation_body.input_shape[1:])
