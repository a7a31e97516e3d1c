"""Pace: how many epochs fit into a time limit, by the speed that was measured. Nothing here looks at a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Part of the time that the head may take where a deeper phase follows.
HEAD_SHARE = 0.25
# An epoch may take so much longer than the one that was measured.
_SLOWER = 1.1


@dataclass(frozen=True)
class Pace:
    """What a time limit comes to; a training that goes on keeps what it began with.

    Attributes:
        budget_s: seconds for the training; None without a limit.
        planned: epochs of phases by their names, where they are known beforehand; 0 leaves a phase out.
    """

    budget_s: float | None = None
    planned: Mapping[str, int] = field(default_factory=dict)


def epochs_that_fit(done: int, most: int, epoch_s: float, left_s: float) -> int:
    """Epochs of a phase from its beginning: those that are done, and as many more as fit.

    Args:
        done: epochs of the phase that are done.
        most: that it has without a limit.
        epoch_s: seconds of an epoch, as measured.
        left_s: seconds that are left for the phase.
    """
    more = int(max(0.0, left_s) / max(epoch_s * _SLOWER, 1e-6))
    return max(done, min(most, done + more))


def share_of(place: int, phases: int, budget_s: float) -> float:
    """Seconds from the beginning of the training at which a phase, counted from 0, should be over."""
    return budget_s * (HEAD_SHARE if place < phases - 1 else 1.0)


def steps_s(calls: Sequence[tuple[int, float]], steps: int) -> float:
    """Seconds that so many steps take, by calls of some steps each; 0.0 if nothing is known.

    Args:
        calls: steps and seconds of each call so far, without one in which TensorFlow traced the step.
        steps: to compute.
    """
    if not calls:
        return 0.0
    done, seconds = map(sum, zip(*calls, strict=True))
    return seconds / done * steps


def seconds_to_finish(start_s: float, photo_s: float, tested: int) -> float:
    """Seconds to keep for what follows training: the bundle is saved, converted and compared, photos are tested.

    Measured: saving takes a third of the start, which builds the same network, or less; half of it is kept.

    Args:
        start_s: seconds from the start of the job until it could begin with the photos.
        photo_s: seconds a photo took to be read and to go through the network.
        tested: photos to test.
    """
    return 0.5 * start_s + photo_s * tested
