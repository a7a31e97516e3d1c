"""Tasks: photos to label as a manifest, and as Label Studio takes them, with what the network says of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa

from flowers import storage
from flowers.bundle import Bundle
from flowers.data import reading, shards
from flowers.data.manifest import read_manifest
from flowers.errors import BadImage, InputError
from flowers.prediction.selection import Floats, uncertainty
from flowers.text import spreadsheet_safe

MANIFEST, TASKS, CONFIG, PHOTOS = "next.csv", "tasks.json", "labels.xml", "photos"


@dataclass(frozen=True)
class Task:
    """A photo to label.

    Attributes:
        path: of its file.
        sha256: of its bytes, in hexadecimal digits.
        predicted: the likeliest class.
        score: its probability.
        second: the next class.
        second_score: its probability.
        uncertainty: how unsure the network is (`flowers.prediction.selection.uncertainty`).
    """

    path: str
    sha256: str
    predicted: str
    score: float
    second: str
    second_score: float
    uncertainty: float


def described(rows: pa.Table, scores: Floats, classes: Sequence[str]) -> list[Task]:
    """A task for each of some photos.

    Args:
        rows: columns path and sha256.
        scores: probabilities float32 [n, K].
        classes: names of the K.
    """
    first, second = np.argsort(-scores, axis=1, kind="stable")[:, :2].T
    at = np.arange(len(scores))
    columns = (
        rows["path"].to_pylist(),
        [digest.hex() for digest in rows["sha256"].to_pylist()],
        [classes[index] for index in first],
        scores[at, first].tolist(),
        [classes[index] for index in second],
        scores[at, second].tolist(),
        uncertainty(scores).tolist(),
    )
    return [Task(*values) for values in zip(*columns, strict=True)]


def filled_in(folder: str) -> int:
    """How many labels somebody filled into the next.csv of a folder."""
    uri = storage.join(folder, MANIFEST)
    if not storage.exists(uri):
        return 0
    rows, _ = read_manifest(uri)
    return sum(code is None for *_, code, _ in rows)


def write(folder: str, tasks: Sequence[Task], bundle: Bundle, files_root: str) -> None:
    """Writes next.csv, a manifest whose column `label` is to be filled in; tasks.json and labels.xml for Label Studio.

    Photos that lie in shards are put beside them as files, for people and programs to open.

    Raises:
        InputError: a photo does not lie where Label Studio serves files from, or nothing can be written.
    """
    tasks = [_as_file(folder, one) for one in tasks]
    files = {MANIFEST: manifest(tasks), TASKS: label_studio(tasks, bundle, files_root), CONFIG: labels(bundle.classes)}
    try:
        for name, text in files.items():
            storage.write(storage.join(folder, name), text.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written: {error.strerror or error}") from error


def _as_file(folder: str, one: Task) -> Task:
    """The task of a photo in a shard with a file of it, any other as it is."""
    place = shards.place_of(one.path)
    if place is None:
        return one
    data = reading.read_bytes(one.path)
    if isinstance(data, BadImage):
        raise InputError(f"--data: {one.path} cannot be read any more: {data.detail}; run the same command again")
    name = f"{one.sha256[:16]}{os.path.splitext(place.name)[1]}"
    path = storage.join(folder, PHOTOS, quote(name) if storage.is_remote(folder) else name)
    try:
        storage.write(path, data)
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written: {error.strerror or error}") from error
    return dataclasses.replace(one, path=path)


def manifest(tasks: Sequence[Task]) -> str:
    """The tasks as CSV: a manifest that training takes once its labels are filled in."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "label", "predicted", "score", "second", "second_score", "uncertainty", "sha256"])
    for one in tasks:
        numbers = [f"{value:.4f}" for value in (one.score, one.second_score, one.uncertainty)]
        names = [spreadsheet_safe(name) for name in (one.path, one.predicted, one.second)]
        writer.writerow([names[0], "", names[1], numbers[0], names[2], *numbers[1:], one.sha256])
    return text.getvalue()


def label_studio(tasks: Sequence[Task], bundle: Bundle, files_root: str) -> str:
    """The tasks as Label Studio imports them, each with the network's answer as a prediction."""
    return json.dumps(
        [
            {
                # A later export names the photo by the first of these that is a picture.
                "data": {"path": one.path, "image": _address(one.path, files_root), "sha256": one.sha256},
                "predictions": [_prediction(one, bundle.sha256[:12])],
            }
            for one in tasks
        ],
        indent=1,
    )


def _prediction(one: Task, version: str) -> dict[str, Any]:
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [one.predicted]}}
    return {"model_version": version, "score": round(one.score, 4), "result": [choice]}


def _address(path: str, files_root: str) -> str:
    """Where Label Studio finds a photo: a file below its document root, or a URI of a storage that it knows."""
    if storage.is_remote(path):
        return unquote(path)
    if files_root != "/" and not storage.inside(path, files_root):
        raise InputError(f"--files-root: the photo {path} does not lie in {files_root}; give a folder above all photos")
    return f"/data/local-files/?d={quote(storage.relative(path, files_root).lstrip('/'))}"


def labels(classes: Sequence[str]) -> str:
    """Label Studio's labeling interface for these classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="label" toName="image" choice="single" showInline="true">\n{choices}\n  </Choices>\n</View>\n'
    )
