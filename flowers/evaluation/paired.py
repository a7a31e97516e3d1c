"""Two bundles on the same photos: which of them is right more often, and whether that may be chance.

Only photos that one has right and the other wrong tell them apart: McNemar, "Note on the sampling error of the
difference between correlated proportions or percentages" (Psychometrika 12, 1947), in its exact form.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from flowers.evaluation.metrics import Metric, metric_of, proportion, wilson

LEVEL = 0.05
"""A difference as large or larger by chance alone at most this often is called one."""


class Paired(BaseModel, frozen=True):
    """How often two classifiers were right on the same photos.

    Attributes:
        n: photos.
        new_right: photos that the new one has right.
        old_right: photos that the old one has right.
        gained: photos that only the new one has right.
        lost: photos that only the old one has right.
    """

    n: int
    new_right: int
    old_right: int
    gained: int
    lost: int

    @classmethod
    def of(cls, new: npt.NDArray[np.bool_], old: npt.NDArray[np.bool_]) -> Paired:
        """Counts bool [n] of each: whether it is right."""
        return cls(
            n=len(new),
            new_right=int(new.sum()),
            old_right=int(old.sum()),
            gained=int((new & ~old).sum()),
            lost=int((old & ~new).sum()),
        )

    @property
    def accuracy(self) -> Metric:
        """Of the new one."""
        return proportion(self.new_right, self.n)

    @property
    def old_accuracy(self) -> Metric:
        """Of the old one."""
        return proportion(self.old_right, self.n)

    @property
    def p_worse(self) -> float:
        """How often chance alone would lose as many of the photos they differ on, or more: one-sided, exact."""
        differ = self.gained + self.lost
        return sum(math.comb(differ, count) for count in range(self.lost, differ + 1)) / 2**differ

    @property
    def p_value(self) -> float:
        """How often chance alone would part the photos they differ on as unequally, or more: two-sided, exact."""
        differ, less = self.gained + self.lost, min(self.gained, self.lost)
        return min(1.0, 2 * sum(math.comb(differ, count) for count in range(less + 1)) / 2**differ)

    @property
    def difference(self) -> Metric:
        """Accuracy of the new one less that of the old one, with its 95 % interval for paired proportions.

        Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data"
        (Statistics in Medicine 17, 1998), method 10.
        """
        if not self.n:
            return metric_of(None, 0, None, None)
        n, b, c = self.n, self.gained, self.lost
        a, d = self.new_right - b, self.n - self.new_right - c
        new, old = (a + b) / n, (a + c) / n
        (low, high), (old_low, old_high) = ([float(end) for end in wilson(hits, n)] for hits in (a + b, a + c))
        spread = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        product = a * d - b * c
        phi = (max(product - n / 2, 0) if product > 0 else product) / spread if spread else 0.0

        def half(first: float, second: float) -> float:
            return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))

        return metric_of(
            new - old, n, new - old - half(new - low, old_high - old), new - old + half(high - new, old - old_low)
        )

    @property
    def worse(self) -> bool:
        """Whether the new one is worse, and not by chance."""
        return self.p_worse <= LEVEL

    @property
    def least_loss(self) -> int:
        """The fewest photos lost, with none gained, that are called a difference."""
        return math.ceil(-math.log2(LEVEL))
