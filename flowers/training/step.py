"""The training step: many global batches in one TensorFlow call, the same numbers for any number of workers.

Keras 3's own `fit` does not run under a distribution strategy, so the step is written out: each replica takes its
part of a global batch and divides its sum of losses by the size of the whole batch; the strategy adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers.config import TrainConfig
from flowers.training.schedule import build_optimizer


@dataclass(frozen=True)
class Batches:
    """T global batches of B photos, of which this worker holds b = B / workers; short ones are filled up.

    Attributes:
        features: float32 [T, b, d].
        labels: int32 [T, b].
        weights: float32 [T, b], the photo's class weight, 0 for filling.
        rows: float32 [T], real photos in the global batch.
        rates: float32 [T], learning rates.
        first: number of the first of these steps in the whole run.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    rows: npt.NDArray[np.float32]
    rates: npt.NDArray[np.float32]
    first: int


class HeadStep:
    """Trains a head on its features.

    Args:
        config: of the run.
        strategy: a `tf.distribute` strategy with one replica in this process.
        head: makes the model (`flowers.model.classifier.build_head`); called in the strategy's scope.
        rank: this worker's number.
    """

    def __init__(self, config: TrainConfig, strategy: Any, head: Any, rank: int) -> None:
        self.config, self.strategy, self.rank = config, strategy, rank
        with strategy.scope():
            self.head = head()
            self.optimizer = build_optimizer(config)
            self.optimizer.build(self.head.trainable_variables)
        self._compile()

    def variables(self) -> dict[str, Any]:
        """Everything a step changes, by a name that stays the same between runs."""
        return {
            **{f"head:{number}": value for number, value in enumerate(self.head.trainable_variables)},
            **{f"optimizer:{number}": value for number, value in enumerate(self.optimizer.variables)},
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all `variables`."""
        return {name: np.asarray(value).copy() for name, value in self.variables().items()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Sets all `variables` to what `state` returned."""
        for name, variable in self.variables().items():
            variable.assign(arrays[name])

    def run(self, batches: Batches) -> npt.NDArray[np.float64]:
        """Runs T steps; returns their losses, float64 [T], each the mean over its global batch."""
        import tensorflow as tf

        losses = self._steps(
            tf.constant(batches.features),
            tf.constant(batches.labels),
            tf.constant(batches.weights),
            tf.constant(batches.rows),
            tf.constant(batches.rates),
            tf.constant(batches.first, tf.int32),
        )
        return losses.numpy().astype(np.float64)

    def probabilities(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities of float32 [n, d] features: float32 [n, K]."""
        chunks = [self._infer(features[start : start + 1024]).numpy() for start in range(0, len(features), 1024)]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.head.output_shape[-1]), np.float32)

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sums a vector float64 [n] over all workers."""
        import tensorflow as tf

        if self.strategy.num_replicas_in_sync == 1:
            return values
        return self._total(tf.constant(values)).numpy()

    def _compile(self) -> None:
        import tensorflow as tf

        config, strategy, rank = self.config, self.strategy, self.rank
        head, optimizer = self.head, self.optimizer
        standardize, dense = head.get_layer("standardize"), head.get_layer("logits")
        width, classes = head.input_shape[-1], head.output_shape[-1]
        share = config.batch_size // config.workers

        def loss_of(features: Any, labels: Any, weights: Any, rows: Any, number: Any) -> Any:
            inputs = standardize(features)
            if config.dropout:
                # Drawn for the global batch and cut, so it depends on neither the number of workers nor on what ran
                # before; and not by the layer's own generator, whose state a checkpoint would have to hold.
                shape = (config.batch_size, width)
                kept = tf.random.stateless_uniform(shape, seed=[config.seed, number]) >= config.dropout
                part = kept[rank * share : (rank + 1) * share]
                inputs *= tf.cast(part, tf.float32) / (1 - config.dropout)
            logits = dense(inputs)
            targets = tf.one_hot(labels, classes)
            targets = targets * (1 - config.label_smoothing) + config.label_smoothing / classes
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits) * weights
            loss = tf.reduce_sum(losses) / rows
            if config.l2:
                loss += config.l2 * tf.reduce_sum(dense.kernel**2) / strategy.num_replicas_in_sync
            return loss

        def step(features: Any, labels: Any, weights: Any, rows: Any, rate: Any, number: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(features, labels, weights, rows, number)
            gradients = tape.gradient(loss, head.trainable_variables)
            optimizer.learning_rate = rate
            optimizer.apply(gradients, head.trainable_variables)
            return loss

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, share, width), tf.float32),
                tf.TensorSpec((None, share), tf.int32),
                tf.TensorSpec((None, share), tf.float32),
                tf.TensorSpec((None,), tf.float32),
                tf.TensorSpec((None,), tf.float32),
                tf.TensorSpec((), tf.int32),
            ]
        )
        def steps(features: Any, labels: Any, weights: Any, rows: Any, rates: Any, first: Any) -> Any:
            losses = tf.TensorArray(tf.float32, size=tf.shape(rows)[0])
            for place in tf.range(tf.shape(rows)[0]):
                arguments = (
                    features[place],
                    labels[place],
                    weights[place],
                    rows[place],
                    rates[place],
                    first + place,
                )
                loss = strategy.run(step, args=arguments)
                losses = losses.write(place, strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None))
            return losses.stack()

        self._steps = steps
        self._total = tf.function(lambda values: strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))
        self._infer = tf.function(
            lambda features: head(features, training=False), input_signature=[tf.TensorSpec((None, width), tf.float32)]
        )
