"""Ray Serve as its image examples write it: one photo a call, no batching."""

from __future__ import annotations

import argparse
import io
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()

    import ray
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": os.cpu_count()})
    class ImageModel:
        def __init__(self, path: str) -> None:
            import keras

            self.model = keras.saving.load_model(path, compile=False)
            self.size = self.model.input_shape[1]

        async def __call__(self, request: Request) -> dict[str, Any]:
            import numpy as np
            from PIL import Image

            body = await request.body()
            photo = Image.open(io.BytesIO(body)).convert("RGB").resize((self.size, self.size))
            scores = self.model.predict(np.asarray(photo)[None], verbose=0)[0]
            return {"label": int(scores.argmax()), "score": float(scores.max())}

    ray.init("local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    serve.run(ImageModel.bind(arguments.model), route_prefix="/predict")  # type: ignore[attr-defined]
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
