"""The texts beside an exported network: an example that runs it, a model card, and Triton's configuration."""

from __future__ import annotations

import json

from flowers.data.split import SUBSETS
from flowers.export.record import Agreement, Export
from flowers.report.formatting import held_out, interval, metric_rows, percent, value
from flowers.report.record import Report
from flowers.text import several

EXAMPLE, CARD, CONFIG = "example.py", "README.md", "config.pbtxt"
_EXAMPLE = '''\
"""The top classes of a photo: python example.py photo.jpg (pip install {runtime} numpy pillow)."""
import sys
from pathlib import Path

{imports}
import numpy as np
from PIL import Image, ImageOps

here = Path(__file__).parent
labels = (here / "labels.txt").read_text(encoding="utf-8").splitlines()
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
pixels = np.asarray(ImageOps.fit(photo, ({size}, {size}), Image.Resampling.BILINEAR))[None]
{call}
for index in np.argsort(-scores)[:3]:
    print(f"{{labels[index]}}  {{scores[index]:.4f}}")
'''
_PLATFORMS = {
    "onnx": 'platform: "onnxruntime_onnx"',
    "saved_model": 'platform: "tensorflow_savedmodel"',
    "openvino": 'backend: "openvino"',
}


def example(export: Export, imports: str, call: str) -> str:
    """A program that runs the network on a photo."""
    return _EXAMPLE.format(
        runtime=export.runtime.partition(" ")[0],
        imports=imports,
        size=export.image_size,
        call=call.format(file=export.network),
    )


def triton_config(export: Export, name: str) -> str:
    """What Triton has to know of a model: `config.pbtxt`."""
    output = "scores" if export.format == "saved_model" else "probabilities"
    size = export.image_size
    return (
        f"name: {json.dumps(name)}\n{_PLATFORMS[export.format]}\nmax_batch_size: 64\n"
        f'input [{{ name: "pixels" data_type: TYPE_UINT8 dims: [{size}, {size}, 3] }}]\n'
        f'output [{{ name: "{output}" data_type: TYPE_FP32 dims: [{len(export.classes)}] '
        'label_filename: "labels.txt" }]\ndynamic_batching {}\n'
    )


def card(export: Export, report: Report | None, start_weights: str, backbone: str) -> str:
    """The model card, in Markdown.

    Args:
        export: what was made.
        report: of the run that trained the network, if it is known.
        start_weights: what the bundle says of the weights it started from.
        backbone: name of the network below the head.
    """
    classes = ", ".join(export.classes[:50]) + (" ..." if len(export.classes) > 50 else "")
    return "\n".join(
        [
            "---\npipeline_tag: image-classification\ntags: [image-classification, flowers]\n---",
            f"# An image classifier of {several(len(export.classes), 'class', 'classes')}\n",
            f"Classes, in the order of the outputs (`labels.txt`): {classes}.\n",
            f"- **Network**: {backbone or 'not known'}, for {export.runtime}; `{export.network}`, "
            f"{export.bytes / 1e6:.1f} MB, quantized: {export.quantize}.",
            f"- **In**: {export.takes}; size = {export.image_size}. The middle square of the photo, turned by its EXIF "
            "orientation, resized with anti-aliasing; values 0 to 255, nothing else.",
            f"- **Out**: {export.gives}; K = {len(export.classes)}.",
            "- **Use**: `python example.py photo.jpg`.\n",
            "## This export\n",
            f"Tried on {export.photos}: {_agreement(export.agreement)}",
            *_of_files(export),
            *([f"Calibrated with {export.calibration}."] if export.calibration else []),
            f"{export.images_per_s:.0f} images/s, the bundle {export.bundle_images_per_s:.0f} on the same machine.\n",
            *(_training(report) if report else ["## Training\n\nThe run that trained it is not at hand.\n"]),
            "## Limits\n",
            "It knows these classes only, and gives one of them to any photo. Scores are the network's own and not "
            "calibrated. It was measured on photos like those it was trained on; others may fare worse.\n",
            "## Licence\n",
            f"{_licence(start_weights)} The photos' own licence was not recorded.",
            "",
        ]
    )


def _agreement(found: Agreement) -> str:
    return (
        f"{percent(found.top_class)} of {found.n} top classes are those of the bundle, scores differ by at most "
        f"{found.largest_difference:.2g}."
    )


def _of_files(export: Export) -> list[str]:
    """How the signature that takes files compares."""
    if export.files_agreement is None:
        return []
    lost = f" {several(export.not_decoded, 'photo')} it could not decode at all." if export.not_decoded else ""
    return [
        "`serve_bytes` takes whole files, which TensorFlow decodes by itself: it does not turn photos by their EXIF "
        "orientation, reads JPEG, PNG, WebP, BMP and GIF only and resizes a little differently. On the same photos: "
        f"{_agreement(export.files_agreement)}{lost}"
    ]


def _training(report: Report) -> list[str]:
    """Photos, split and metrics of the run."""
    held, _ = held_out(report)
    split = ", ".join(f"{getattr(report.split, subset)} {subset}" for subset in SUBSETS)
    rows = [
        f"| {row.name} | {value(row.test, row.percent)} | {interval(row.test, row.percent)} "
        f"| {value(row.validation, row.percent)} | {interval(row.validation, row.percent)} |"
        for row in metric_rows(report)
    ]
    recall = [
        f"| {label} | {value(scores.recall, True)} | {interval(scores.recall, True)} | {scores.n} |"
        for label, scores in getattr(report, held).per_class.items()
    ]
    return [
        "## Training\n",
        *(["DRAWN pictures and no photos: its numbers say nothing about real photos.\n"] if report.sample else []),
        f"{report.data.used} photos in {len(report.data.classes)} classes: {split}; copies of a picture are on one "
        f"side. Trained: {report.trainable}; augmentation: {report.augment}; seed {report.seed}; {report.created}.\n",
        f"| | test (n = {report.test.n}) | 95 % | validation (n = {report.validation.n}), chose the epoch | 95 % |",
        "|-|-:|-|-:|-|",
        *rows,
        f"\n| recall, {held} photos | | 95 % | n |\n|-|-:|-|-:|",
        *recall,
        "",
        *[f"- {text}" for text in report.warnings],
        "",
    ]


def _licence(start_weights: str) -> str:
    """What is known of the weights that training started from."""
    kind, _, detail = start_weights.partition(":")
    if kind == "random":
        return "Training started from random weights: there is no licence of others in them."
    if kind == "imagenet":
        return (
            "Training started from ImageNet weights that Keras distributes (https://keras.io/api/applications/ names "
            "the licence of each network); ImageNet's photos are for non-commercial research."
        )
    if kind == "file":
        return f"Training started from a weights file (SHA-256 {detail[:16]}...), whose licence is not known here."
    return "What training started from was not recorded."
