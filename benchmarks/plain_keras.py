"""What a careful person writes by hand: one process, tf.data, Keras `predict` and `fit`, features computed once.

Same network, same start weights, same precision, same split fractions, same epochs of the head as the job it is
compared with. Run by train_speed.py; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

BEGAN = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--backbone", default="ResNet50V2")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()

    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(arguments.precision)
    size = 224
    dataset = keras.utils.image_dataset_from_directory(
        arguments.data, image_size=(size, size), batch_size=32, shuffle=False, crop_to_aspect_ratio=True, verbose=0
    )
    classes = dataset.class_names
    labels = np.array([classes.index(os.path.basename(os.path.dirname(path))) for path in dataset.file_paths])
    order = np.random.default_rng(0).permutation(len(labels))
    ends = np.round(np.cumsum([0.7, 0.27]) * len(labels)).astype(int)
    train, validation, test = np.split(order, ends)

    backbone = getattr(keras.applications, arguments.backbone)(
        include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg"
    )
    backbone.trainable = False
    pixels = keras.Input((size, size, 3))
    frozen = keras.Model(pixels, backbone(keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels), training=False))
    features = frozen.predict(dataset.prefetch(tf.data.AUTOTUNE), verbose=0).astype("float32")

    normalization = keras.layers.Normalization(dtype="float32")
    normalization.adapt(features[train])
    head = keras.Sequential(
        [
            keras.Input((features.shape[1],)),
            normalization,
            keras.layers.Dropout(0.2, dtype="float32"),
            keras.layers.Dense(len(classes), activation="softmax", dtype="float32"),
        ]
    )
    head.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    head.fit(
        features[train],
        labels[train],
        batch_size=32,
        epochs=arguments.epochs,
        validation_data=(features[validation], labels[validation]),
        verbose=0,
    )
    model = keras.Model(pixels, head(frozen(pixels)))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    model.save(os.path.join(arguments.output, "plain.keras"))
    photos = np.stack(
        [
            keras.preprocessing.image.smart_resize(keras.utils.img_to_array(keras.utils.load_img(path)), (size, size))
            for path in np.array(dataset.file_paths)[test]
        ]
    )
    measured = model.evaluate(photos, labels[test], verbose=0, return_dict=True)
    accuracy = head.evaluate(features[validation], labels[validation], verbose=0, return_dict=True)["accuracy"]
    print(json.dumps({"seconds": time.time() - BEGAN, "validation": accuracy, "test": measured["accuracy"]}))


if __name__ == "__main__":
    main()
