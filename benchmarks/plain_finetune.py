"""Fine-tuning as Keras' guide to transfer learning writes it: one process, tf.data, the head first, then stage 5 too.

Every epoch decodes the photos and runs the whole network; BatchNormalization stays as it is. Same network, split
fractions and epochs as the job it is compared with. Run by finetune_speed.py; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

BEGAN = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--backbone", default="ResNet50V2")
    parser.add_argument("--stage", default="conv5_", help="what the names of the trained layers begin with")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--head-epochs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(arguments.precision)
    size = 224
    paths = sorted(Path(arguments.data).glob("*/*.jpg"))
    classes = sorted({path.parent.name for path in paths})
    labels = np.array([classes.index(path.parent.name) for path in paths])
    names = np.array([str(path) for path in paths])
    order = np.random.default_rng(0).permutation(len(paths))
    train, validation, test = np.split(order, np.round(np.cumsum([0.7, 0.27]) * len(paths)).astype(int))

    def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        photo = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return keras.preprocessing.image.smart_resize(photo, (size, size)), label

    def dataset(rows: np.ndarray, shuffle: bool = False) -> tf.data.Dataset:
        files = tf.data.Dataset.from_tensor_slices((names[rows], labels[rows]))
        if shuffle:
            files = files.shuffle(len(rows))
        return files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)

    base = getattr(keras.applications, arguments.backbone)(include_top=False, weights=None, input_shape=(size, size, 3))
    pixels = keras.Input((size, size, 3))
    features = base(keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels), training=False)
    pooled = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(pixels, keras.layers.Dense(len(classes), dtype="float32")(pooled))

    epoch_s: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            epoch_s.append(round(time.perf_counter() - self.began, 2))

    def fit(learning_rate: float, epochs: int) -> None:
        model.compile(
            optimizer=keras.optimizers.Adam(learning_rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(
            dataset(train, shuffle=True),
            validation_data=dataset(validation),
            epochs=epochs,
            callbacks=[Clock()],
            verbose=0,
        )

    base.trainable = False
    fit(1e-3, arguments.head_epochs)
    base.trainable = True
    for layer in base.layers:
        normalizes = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name.startswith(arguments.stage) and not normalizes
    if not base.trainable_variables:
        parser.error(f"{arguments.backbone} has no layer whose name begins with {arguments.stage!r}")
    fit(1e-5, arguments.epochs)
    model.save(os.path.join(arguments.output, "plain.keras"))
    measured = model.evaluate(dataset(test), verbose=0, return_dict=True)
    found = {"seconds": round(time.time() - BEGAN, 2), "head_epoch_s": epoch_s[: arguments.head_epochs]}
    print(json.dumps({**found, "epoch_s": epoch_s[arguments.head_epochs :], "test": measured["accuracy"]}))


if __name__ == "__main__":
    main()
