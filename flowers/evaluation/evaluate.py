"""Test photos through the saved bundle: from their bytes, never from the feature cache."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from flowers.errors import DamagedFile
from flowers.evaluation.metrics import Counts
from flowers.predictor import Predictor


def evaluate(
    tables: Iterable[pa.Table], predictor: Predictor, examples: int = 0
) -> tuple[Counts, list[dict[str, Any]]]:
    """Counts every decoded photo and describes the first few.

    Args:
        tables: schema `flowers.data.reading.PIXELS`.
        predictor: the bundle.
        examples: photos to describe: path, label, predicted, score, top and a thumbnail (data URI).

    Raises:
        DamagedFile: a photo of the split can no longer be read.
    """
    classes, size = predictor.bundle.classes, predictor.bundle.image_size
    counts = Counts.zero(len(classes))
    described: list[dict[str, Any]] = []
    for table in tables:
        lost = table.filter(pc.is_valid(table["code"]))
        if lost.num_rows:
            raise DamagedFile(f"{lost['path'][0]} changed since it was split: {lost['detail'][0]}; use another --name")
        if not table.num_rows:
            continue
        photos = [np.frombuffer(value.as_buffer(), np.uint8).reshape(size, size, 3) for value in table["pixels"]]
        probabilities, heat = predictor.run(np.stack(photos))
        labels = table["label"].to_pylist()
        counts += Counts.of([classes.index(label) for label in labels], probabilities)
        for index in range(min(table.num_rows, examples - len(described))):
            # The label that is shown is the argmax: ML.NET's F# sample shows the true one by mistake.
            answer = predictor.prediction(probabilities[index], heat[index])
            order = np.argsort(-answer.probabilities, kind="stable")[:3]
            described.append(
                {
                    "path": table["path"][index].as_py(),
                    "label": labels[index],
                    "predicted": answer.label,
                    "score": answer.score,
                    "top": [{"label": classes[at], "score": float(answer.probabilities[at])} for at in order],
                    "thumbnail": thumbnail(photos[index]),
                }
            )
    return counts, described


def thumbnail(pixels: Any, size: int = 160) -> str:
    """A small JPEG of uint8 [H, W, 3] pixels as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
