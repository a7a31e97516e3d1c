"""Typicality: how usual a photo is among those of a network's classes; photos of anything else are unusual.

A photo is strange if its features lie far from those of the training photos of every class, and a little more so if the
network is unsure of it. Its typicality is the share of validation photos that are as strange: a conformal p-value, so
that of photos of the classes on average just this share lies below any limit, whatever the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Directions in which photos of one class differ most, at most; what confidence counts beside the distance; the least
# doubt that is told from none. All three, and what they were chosen against, are in docs/decisions.md.
_DIRECTIONS, _CONFIDENCE, _DOUBT = 32, 0.25, 1e-3
# Rounds in which the directions are found, of a few more than are wanted.
_ROUNDS, _SPARE = 8, 8
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Typicality:
    """What is known of photos of the classes.

    Features are scaled to length 1. Within a class they differ as in a normal distribution that all classes share: by
    a variance of its own in each of r directions, by one for all others (probabilistic principal components).

    Attributes:
        means: [K, d], of the features of each class.
        directions: [d, r], of length 1 and at right angles to each other.
        variances: [r + 1], in these directions and, last, in any other.
        scales: [2, 2], mean and standard deviation of the distance and of the doubt of validation photos.
        held: [m], how strange these are, ascending.
    """

    means: Array
    directions: Array
    variances: Array
    scales: Array
    held: Array

    @classmethod
    def fit(
        cls,
        features: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int32],
        held: npt.NDArray[np.float32],
        probabilities: npt.NDArray[np.float32],
    ) -> Typicality:
        """Learns from photos of the classes.

        Args:
            features: float32 [n, d], of training photos.
            labels: int32 [n], their classes.
            held: float32 [m, d], features of validation photos, m at least 1.
            probabilities: float32 [m, K], of these.
        """
        x = _unit(features)
        k, (n, d) = probabilities.shape[1], x.shape
        counts = np.bincount(labels, minlength=k)
        means = np.zeros((k, d))
        np.add.at(means, labels, x)
        means /= np.maximum(counts, 1)[:, None]
        means[counts == 0] = x.mean(axis=0)
        x -= means[labels]
        directions, variances = _components(x, min(_DIRECTIONS, n // 4, d // 2), max(1, n - k))
        found = cls(means, directions, variances, np.array([[0.0, 1.0], [0.0, 1.0]]), np.zeros(1))
        both = np.stack([found._distance(held), _doubt(probabilities)])
        scales = np.stack([both.mean(axis=1), np.maximum(both.std(axis=1), _LEAST)], axis=1)
        # Rounded as they will be kept, so that a photo is as strange now as it is then.
        rounded = (one.astype("<f4").astype(np.float64) for one in (means, directions, variances, scales))
        means, directions, variances, scales = rounded
        kept = cls(means, directions, variances, scales, np.zeros(1))
        return replace(kept, held=np.sort(kept.strangeness(held, probabilities)).astype(np.float64))

    @property
    def validated(self) -> int:
        """Validation photos that it goes by, m."""
        return len(self.held)

    @property
    def least(self) -> float:
        """The typicality of the strangest of these, and of all that are stranger."""
        return 1 / (self.validated + 1)

    def of(self, features: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The typicality of photos, float32 [n], above 0 and below 1, of features [n, d] and probabilities [n, K].

        That of the k-th strangest validation photo is k / (m + 1), and between two of them it goes on evenly: else a
        limit would hold what the next lower step does.
        """
        shares = np.arange(self.validated, 0, -1) * self.least
        return np.interp(self.strangeness(features, probabilities), self.held, shares).astype(np.float32)

    def strangeness(
        self, features: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """How strange photos are, float32 [n]: 0 is that of the average validation photo."""
        (centre, width), (usual, spread) = self.scales
        distance = (self._distance(features) - centre) / width
        return (distance + _CONFIDENCE * (_doubt(probabilities) - usual) / spread).astype(np.float32)

    def _distance(self, features: npt.NDArray[np.float32]) -> Array:
        """The square of the Mahalanobis distance from the nearest class, [n]."""
        x, rest = _unit(features), 1 / self.variances[-1]
        products = x @ self._turned
        towards, along = products[:, : len(self.means)], products[:, len(self.means) :]
        own = rest * (x**2).sum(axis=1) + (along**2) @ (1 / self.variances[:-1] - rest)
        return (own[:, None] + self._offsets - 2 * towards).min(axis=1)

    @cached_property
    def _turned(self) -> Array:
        """[d, K + r]: what a photo is multiplied with: the means by the inverse of the covariance, the directions."""
        rest = 1 / self.variances[-1]
        weights = 1 / self.variances[:-1] - rest
        inverse = rest * self.means.T + self.directions @ (weights[:, None] * (self.means @ self.directions).T)
        return np.concatenate([inverse, self.directions], axis=1)

    @cached_property
    def _offsets(self) -> Array:
        """[K]: the square of the distance of each mean from 0."""
        return (self.means * self._turned[:, : len(self.means)].T).sum(axis=1)

    def to_bytes(self) -> bytes:
        """Its file: d, r and m as uint32, then all arrays as float32, little-endian; nothing to unpack or to trust."""
        sizes = np.array([*self.directions.shape, self.validated], "<u4")
        arrays = (self.means, self.directions, self.variances, self.scales, self.held)
        return b"".join([sizes.tobytes(), *(array.astype("<f4").tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, data: bytes, classes: int) -> Typicality:
        """What `to_bytes` gave.

        Args:
            data: the file.
            classes: K.

        Raises:
            ValueError: it is none of K classes.
        """
        if len(data) < 12:
            raise ValueError(f"it has {len(data)} bytes")
        d, r, m = np.frombuffer(data, "<u4", 3).tolist()
        shapes = [(classes, d), (d, r), (r + 1,), (2, 2), (m,)]
        ends = np.cumsum([int(np.prod(shape, dtype=object)) for shape in shapes], dtype=object)
        if not (d and m) or len(data) != 12 + 4 * ends[-1]:
            raise ValueError(f"it has {len(data)} bytes, not those of {classes} classes, {d} features and {m} photos")
        values = np.frombuffer(data, "<f4", offset=12).astype(np.float64)
        parts = np.split(values, [int(end) for end in ends[:-1]])
        found = cls(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))
        sane = np.isfinite(values).all() and (found.variances > 0).all() and (found.scales[:, 1] > 0).all()
        if not sane or (np.diff(found.held) < 0).any():
            raise ValueError("its numbers are none of photos")
        return found


def none_of_these(typicality: float, allowed: float) -> str | None:
    """Why a photo is taken for none of the classes, in one line; None if it is not.

    Args:
        typicality: of the photo.
        allowed: share of photos of the classes that may be taken for such.
    """
    if not rejected(typicality, allowed):
        return None
    share, limit = (f"{100 * value:.2g} %" for value in (typicality, allowed))
    return f"none of these: {share} of photos of these classes are as unusual, the limit is {limit}"


def rejected(typicality: npt.ArrayLike, allowed: float) -> npt.NDArray[np.bool_]:
    """Whether photos are taken for none of the classes, compared in float32 wherever it is asked."""
    return np.asarray(typicality, np.float32) <= np.float32(allowed)


def _unit(features: npt.NDArray[np.float32]) -> Array:
    """Features of length 1: how strong they are tells lit and busy photos, not classes."""
    x = np.asarray(features, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LEAST)


def _doubt(probabilities: npt.NDArray[np.float32]) -> Array:
    """The logarithm of what the likeliest class lacks to certainty, [n]."""
    return np.log(np.maximum(1 - probabilities.max(axis=1).astype(np.float64), _DOUBT))


def _components(x: Array, count: int, freedom: int) -> tuple[Array, Array]:
    """The directions in which rows around 0 vary most, [d, count], and the variances [count + 1].

    A few rounds of subspace iteration: of all directions only these are wanted.
    """
    d = x.shape[1]
    basis = np.random.Generator(np.random.PCG64(0)).normal(size=(d, min(d, count + _SPARE)))
    for _ in range(_ROUNDS):
        basis, _ = np.linalg.qr(x.T @ (x @ basis))
    _, strengths, turned = np.linalg.svd(x @ basis, full_matrices=False)
    squares = strengths[:count] ** 2
    rest = ((x**2).sum() - squares.sum()) / freedom / (d - count)
    variances = np.maximum(np.append(squares / freedom, rest), _LEAST)
    return basis @ turned[:count].T, variances
