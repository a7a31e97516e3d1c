"""The usual small server: FastAPI, Pillow, `model.predict` on one photo a request."""

from __future__ import annotations

import argparse
import io
import os

from fastapi import FastAPI, Request

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()

    import keras
    import numpy as np
    import uvicorn
    from PIL import Image

    app = FastAPI()
    model = keras.saving.load_model(arguments.model, compile=False)
    size = model.input_shape[1]

    def answer(body: bytes) -> dict[str, object]:
        photo = Image.open(io.BytesIO(body)).convert("RGB").resize((size, size))
        scores = model.predict(np.asarray(photo)[None], verbose=0)[0]
        return {"label": int(scores.argmax()), "score": float(scores.max())}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, object]:
        return answer(await request.body())

    answer_once = io.BytesIO()
    Image.new("RGB", (size, size)).save(answer_once, "JPEG")
    answer(answer_once.getvalue())
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
