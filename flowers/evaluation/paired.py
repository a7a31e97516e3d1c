"""Two bundles on the same photos: which of them is right more often, and whether that may be chance.

Only photos that one has right and the other wrong tell them apart: McNemar, "Note on the sampling error of the
difference between correlated proportions or percentages" (Psychometrika 12, 1947), in its exact form.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

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
    def p_worse(self) -> float:
        """How often chance alone would lose as many of the photos they differ on, or more: one-sided, exact."""
        differ = self.gained + self.lost
        return sum(math.comb(differ, count) for count in range(self.lost, differ + 1)) / 2**differ

    @property
    def worse(self) -> bool:
        """Whether the new one is worse, and not by chance."""
        return self.p_worse <= LEVEL

    @property
    def least_loss(self) -> int:
        """The fewest photos lost, with none gained, that are called a difference."""
        return math.ceil(-math.log2(LEVEL))
