"""OpenVINO: the bundle's network with its labels, in float32, float16 or 8-bit integers."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import openvino

from flowers.bundle import Bundle
from flowers.inference.engine import Photos, usable_cpus
from flowers.inference.openvino_engine import CORE, NETWORK, compiled

IMPORTS = "import openvino"
CALL = """\
# Without the hint, a CPU that computes in bfloat16 does: faster, and scores differ a little.
network = openvino.Core().compile_model(here / "{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
scores = network(pixels)["probabilities"][0]"""


def write(bundle: Bundle, path: str, quantize: str, calibration: Photos | None) -> None:
    """Takes the probabilities of the bundle's network; the weights go to a file of the same name that ends in .bin."""
    with bundle.network() as folder:
        read = CORE.read_model(os.path.join(folder, NETWORK[0]))
    probabilities, pixels = read.output(0), read.input()
    probabilities.set_names({"probabilities"})
    pixels.set_names({"pixels"})
    network = openvino.Model([probabilities], read.get_parameters(), "flowers")
    if quantize == "int8":
        network = _quantized(network, calibration)
    # As OpenVINO's Model API and Model Server read them: blanks part the labels.
    network.set_rt_info("Classification", ["model_info", "model_type"])
    network.set_rt_info(" ".join("_".join(name.split()) for name in bundle.classes), ["model_info", "labels"])
    openvino.save_model(network, path, compress_to_fp16=quantize == "float16")


def _quantized(network: Any, calibration: Photos | None) -> Any:
    import nncf

    if calibration is None:
        raise ValueError("int8 needs photos to calibrate with")
    photos = nncf.Dataset(calibration, lambda photo: photo[None])
    with redirect_stdout(None):  # its bars are shown where nobody watches, too
        return nncf.quantize(network, photos, subset_size=len(calibration), preset=nncf.QuantizationPreset.MIXED)


def runner(path: str) -> Any:
    """See `flowers.export.formats`."""
    # In float32: else a CPU that computes in bfloat16 would, and the rounding were taken for the export's.
    network = CORE.compile_model(path, "CPU", compiled("float32", usable_cpus()))
    return lambda pixels: np.array(network(pixels)["probabilities"])
