"""A short LitServe script with ONNX Runtime, as people write it; run by a Python that has litserve and onnxruntime.

    python -m venv peers && peers/bin/pip install litserve onnxruntime pillow python-multipart
    python -m benchmarks.serve_speed DATA --peer-python peers/bin/python

It needs nothing of this project.
"""

import argparse
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

try:
    import litserve
    import onnxruntime
    from fastapi import UploadFile  # LitServe looks at the annotation: here it has to be a class, not its name
except ImportError:  # --help works without
    litserve = UploadFile = None  # type: ignore[misc, assignment]


class Photos(litserve.LitAPI if litserve else object):  # type: ignore[misc]
    """Decodes, computes up to 32 photos at once, answers."""

    def __init__(self, model: str, threads: int, **more: Any) -> None:
        super().__init__(**more)
        self.model, self.threads = model, threads

    def setup(self, device: str) -> None:
        """Loads the network in the worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        self.name, self.size = self.session.get_inputs()[0].name, self.session.get_inputs()[0].shape[1]

    def decode_request(self, request: UploadFile) -> Any:
        """The middle square of a photo."""
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(request.file.read()))).convert("RGB")
        return np.asarray(ImageOps.fit(photo, (self.size, self.size), Image.Resampling.BILINEAR))

    def batch(self, inputs: list[Any]) -> Any:
        """Photos of several requests."""
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        """Their probabilities."""
        return self.session.run(None, {self.name: batch})[0]

    def unbatch(self, output: Any) -> list[Any]:
        """One a request."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, object]:
        """What the client gets."""
        return {"label": int(output.argmax()), "score": float(output.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an .onnx file: uint8 [n, size, size, 3] to probabilities")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-timeout", type=float, default=0.0)
    arguments = parser.parse_args()
    api = Photos(arguments.model, arguments.threads, max_batch_size=32, batch_timeout=arguments.batch_timeout)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=arguments.port, num_api_servers=1, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
