"""Keras: the bundle's own model, which holds its labels as well."""

from __future__ import annotations

import os
import shutil
from typing import Any

import keras

from flowers.bundle import MODEL, Bundle
from flowers.inference.engine import Photos

IMPORTS = "import keras"
CALL = """\
network = keras.saving.load_model(here / "{file}")
scores = np.asarray(network(pixels))[0]"""


def write(bundle: Bundle, path: str, quantize: str, calibration: Photos | None) -> None:
    """Copies it."""
    with bundle.local_files(MODEL) as folder:
        shutil.copyfile(os.path.join(folder, MODEL), path)


def runner(path: str) -> Any:
    """See `flowers.export.formats`."""
    network = keras.saving.load_model(path, compile=False)
    return network.predict_on_batch  # `predict` makes a dataset of each call, which takes longer than the network
