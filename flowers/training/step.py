"""The training step: many global batches in one TensorFlow call, the same numbers for any number of workers.

Keras 3's own `fit` does not run under a distribution strategy, so the step is written out: each replica takes its
part of a global batch and divides its sum of losses by the size of the whole batch; the strategy adds up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from flowers.config import TrainConfig
from flowers.training.schedule import build_optimizer


@dataclass(frozen=True)
class Batches:
    """T global batches, of which this worker holds b = batch / workers photos each; short ones are filled up.

    Attributes:
        inputs: [T, b, ...], what the trained part takes: features, outputs at a cut, or uint8 pixels.
        labels: int32 [T, b].
        weights: float32 [T, b], the photo's class weight, 0 for filling.
        rows: float32 [T], real photos in the global batch.
        rates: float32 [T], learning rates.
        first: number of the first of these steps in the whole run.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    rows: npt.NDArray[np.float32]
    rates: npt.NDArray[np.float32]
    first: int


@dataclass(frozen=True)
class Trained:
    """What a phase trains.

    Attributes:
        head: `keras.Model` from pooled features to probabilities (`flowers.model.classifier.build_head`).
        body: `keras.Model` from a training input to pooled features; None where these are the input.
        validation_body: the same for a validation input.
        groups: trained variables of the body by block and the fraction of the learning rate that each gets.
        augment: changes pixels uint8 [b, size, size, 3] and targets float32 [b, K], each photo's weight at its
            class, in a step of a given number.
    """

    head: Any
    body: Any = None
    validation_body: Any = None
    groups: tuple[tuple[float, list[Any]], ...] = ()
    augment: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None


def summed(strategy: Any) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """A function that sums a vector float64 [n] over all workers, which call it together."""
    if strategy.num_replicas_in_sync == 1:
        return lambda values: values
    total = tf.function(lambda values: strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))
    return lambda values: total(tf.constant(values)).numpy()


class Step:
    """Trains a head, and what is below it, on their input.

    Args:
        config: of the run; its label smoothing is that of the phase, none if None.
        strategy: a `tf.distribute` strategy with one replica in this process.
        build: makes what is trained; called in the strategy's scope.
        rank: this worker's number.
        workers: how many there are.
        microbatches: parts in which a worker's photos of a step go through the network, one after the other, where
            memory does not suffice for all at once; their gradients are added up.
    """

    def __init__(
        self,
        config: TrainConfig,
        strategy: Any,
        build: Callable[[], Trained],
        rank: int = 0,
        workers: int = 1,
        microbatches: int = 1,
    ) -> None:
        self.config, self.strategy, self.rank = config, strategy, rank
        self.local_batch = config.batch_size // workers
        self.microbatches = min(microbatches, self.local_batch)
        with strategy.scope():
            self.trained = build()
            self.head = self.trained.head
            groups = [*self.trained.groups, (1.0, self.head.trainable_variables)]
            self._groups = [(fraction, variables, build_optimizer(config, variables)) for fraction, variables in groups]
            for _, variables, optimizer in self._groups:
                optimizer.build(variables)
        self._compile()

    def variables(self) -> dict[str, Any]:
        """Everything a step changes, by a name that stays the same between runs."""
        tail = [variable for _, variables in self.trained.groups for variable in variables]
        optimizer = [variable for _, _, optimizer in self._groups for variable in optimizer.variables]
        return {
            f"{kind}:{number}": variable
            for kind, variables in (
                ("head", self.head.trainable_variables),
                ("tail", tail),
                ("optimizer", optimizer),
            )
            for number, variable in enumerate(variables)
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all `variables`."""
        return {name: np.asarray(value).copy() for name, value in self.variables().items()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]], kind: str = "") -> None:
        """Sets all `variables`, or those of one kind ("head"), to what `state` returned."""
        for name, variable in self.variables().items():
            if name.startswith(kind):
                variable.assign(arrays[name])

    def run(self, batches: Batches) -> npt.NDArray[np.float64]:
        """Runs T steps; returns their losses, float64 [T], each the mean over its global batch."""
        losses = self._steps(
            tf.constant(batches.inputs),
            tf.constant(batches.labels),
            tf.constant(batches.weights),
            tf.constant(batches.rows),
            tf.constant(batches.rates),
            tf.constant(batches.first, tf.int32),
        )
        return losses.numpy().astype(np.float64)

    def probabilities(self, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Probabilities of validation inputs [n, ...]: float32 [n, K]."""
        size = max(1, len(inputs) if self.microbatches == 1 else self.local_batch // self.microbatches)
        parts = [inputs[start : start + size] for start in range(0, len(inputs) or 1, size)]
        return np.concatenate([self._infer(tf.constant(part)).numpy() for part in parts])

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sums a vector float64 [n] over all workers."""
        return self._total(values)

    def _kept(self, number: Any) -> Any:
        """The dropout mask of this worker's photos, float32 [b, d].

        Drawn for the global batch and cut, so it depends on neither the number of workers nor on what ran before; and
        not by the layer's own generator, whose state a checkpoint would have to hold.
        """
        config, start = self.config, self.rank * self.local_batch
        shape = (config.batch_size, self.head.input_shape[-1])
        kept = tf.random.stateless_uniform(shape, seed=[config.seed, number]) >= config.dropout
        return tf.cast(kept[start : start + self.local_batch], tf.float32) / (1 - config.dropout)

    def _loss(self, inputs: Any, targets: Any, kept: Any, rows: Any) -> Any:
        """This worker's part, and this microbatch's, of the mean loss of a global batch.

        The targets float32 [n, K] add up to each photo's weight.
        """
        config, body = self.config, self.trained.body
        standardize, dense = self.head.get_layer("standardize"), self.head.get_layer("logits")
        features = standardize(inputs if body is None else body(inputs, training=False))
        logits = dense(features if kept is None else features * kept)
        evenly = tf.reduce_mean(targets, axis=1, keepdims=True)
        smoothing = config.label_smoothing or 0.0
        targets = targets * (1 - smoothing) + smoothing * evenly
        loss = -tf.reduce_sum(targets * tf.nn.log_softmax(logits)) / rows
        if config.l2:
            loss += (
                config.l2 * tf.reduce_sum(dense.kernel**2) / (self.strategy.num_replicas_in_sync * self.microbatches)
            )
        return loss

    def _step(self, inputs: Any, labels: Any, weights: Any, rows: Any, rate: Any, number: Any) -> Any:
        """One step in one replica; returns its part of the loss."""
        targets = tf.one_hot(labels, self.head.output_shape[-1]) * weights[:, None]
        if self.trained.augment is not None:
            inputs, targets = self.trained.augment(inputs, targets, number)
        kept = self._kept(number) if self.config.dropout else None
        variables = [variable for _, group, _ in self._groups for variable in group]
        total, gradients = tf.constant(0.0), [tf.constant(0.0)] * len(variables)
        for part in self._parts():
            with tf.control_dependencies(gradients):  # one microbatch after the other: that is what saves memory
                with tf.GradientTape() as tape:
                    microbatch = None if kept is None else kept[part]
                    loss = self._loss(tf.identity(inputs[part]), targets[part], microbatch, rows)
                found = tape.gradient(loss, variables)
            total += loss
            gradients = (
                found if self.microbatches == 1 else [old + new for old, new in zip(gradients, found, strict=True)]
            )
        for fraction, group, optimizer in self._groups:
            optimizer.learning_rate = rate * fraction
            optimizer.apply(gradients[: len(group)], group)
            gradients = gradients[len(group) :]
        return total

    def _parts(self) -> Iterator[slice]:
        ends = np.linspace(0, self.local_batch, self.microbatches + 1).astype(int).tolist()
        return (slice(start, end) for start, end in itertools.pairwise(ends))

    def _compile(self) -> None:
        strategy, trained, step = self.strategy, self.trained, self._step
        source = self.head if trained.body is None else trained.body
        shape, dtype = source.input_shape[1:], source.inputs[0].dtype

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, self.local_batch, *shape), dtype),
                tf.TensorSpec((None, self.local_batch), tf.int32),
                tf.TensorSpec((None, self.local_batch), tf.float32),
                tf.TensorSpec((None,), tf.float32),
                tf.TensorSpec((None,), tf.float32),
                tf.TensorSpec((), tf.int32),
            ]
        )
        def steps(inputs: Any, labels: Any, weights: Any, rows: Any, rates: Any, first: Any) -> Any:
            losses = tf.TensorArray(tf.float32, size=tf.shape(rows)[0])
            for index in tf.range(tf.shape(rows)[0]):
                arguments = (inputs[index], labels[index], weights[index], rows[index], rates[index], first + index)
                loss = strategy.run(step, args=arguments)
                losses = losses.write(index, strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None))
            return losses.stack()

        def infer(inputs: Any) -> Any:
            body = trained.validation_body
            return self.head(inputs if body is None else body(inputs, training=False), training=False)

        self._steps = steps
        self._total = summed(strategy)
        self._infer = tf.function(infer, reduce_retracing=True)
