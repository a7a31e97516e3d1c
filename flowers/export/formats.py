"""The formats a network can be exported to, and what each needs; their modules are loaded when they are used.

A module of a format has these functions and texts:

- `write(bundle, path, quantize, calibration)` makes the file or folder `path`.
- `runner(path)` loads it with the format's own runtime and returns a function from uint8 [n, size, size, 3] to
  probabilities float32 [n, K].
- `IMPORTS` and `CALL`: lines of an example in Python; `CALL` names the file `{file}` and gives `scores`, float [K], of
  `pixels`, uint8 [1, size, size, 3].
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from flowers.errors import InputError

EXTRA = "export"


@dataclass(frozen=True)
class Format:
    """What is known of a format before its module is loaded.

    Attributes:
        file: name of the file or folder that holds the network.
        runtime: the package that runs it.
        packages: what has to be installed to write and run it: packages by the names they are imported by.
        quantize: the values of `--quantize` it has, without "none".
        layouts: where the network lies in model repositories, below their folder, by `--layout`.
        takes: its input, in words.
        gives: its outputs, in words.
    """

    file: str
    runtime: str
    packages: dict[str, str]
    quantize: tuple[str, ...]
    layouts: dict[str, str]
    takes: str = "pixels: uint8 [n, size, size, 3], RGB"
    gives: str = "probabilities: float32 [n, K]"

    def missing(self, quantize: str) -> list[str]:
        """Packages that are not installed."""
        wanted = {**self.packages, **({"nncf": "nncf"} if (self.runtime, quantize) == ("openvino", "int8") else {})}
        return [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]

    @property
    def version(self) -> str:
        """The version of its runtime."""
        return version(self.runtime)


FORMATS = {
    "saved_model": Format(
        file="saved_model",
        runtime="tensorflow",
        packages={},
        quantize=(),
        layouts={"tensorflow-serving": "1", "triton": "1/model.savedmodel"},
        takes="serving_default: pixels, uint8 [n, size, size, 3], RGB; serve_bytes: image_bytes, string [n], files",
        gives="scores float32 [n, K], classes string [n, K], label string [n], score float32 [n]",
    ),
    "onnx": Format(
        file="model.onnx",
        runtime="onnxruntime",
        packages={"onnx": "onnx", "tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"},
        quantize=(),
        layouts={"triton": "1/model.onnx"},
    ),
    "openvino": Format(
        file="network.xml",
        runtime="openvino",
        packages={},
        quantize=("float16", "int8"),
        layouts={"triton": "1/model.xml"},
    ),
    "litert": Format(
        file="model.tflite",
        runtime="ai-edge-litert",
        packages={"ai_edge_litert": "ai-edge-litert"},
        quantize=("float16", "int8"),
        layouts={},
        takes="pixels: uint8 [1, size, size, 3], RGB",
        gives="probabilities: float32 [1, K]",
    ),
    "keras": Format(file="model.keras", runtime="keras", packages={}, quantize=(), layouts={}),
}


def module(name: str, quantize: str) -> Any:
    """The module of a format.

    Raises:
        InputError: packages it needs are not installed.
    """
    if missing := FORMATS[name].missing(quantize):
        raise InputError(
            f'--format {name}: not installed: {", ".join(missing)}; pip install -c constraints.txt -e ".[{EXTRA}]"'
        )
    return importlib.import_module(f"flowers.export.{name}")
