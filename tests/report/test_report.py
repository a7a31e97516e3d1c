"""The page and the text for the terminal: rendered from a realistic report and from hostile ones."""

from __future__ import annotations

import base64
import functools
import io
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from jinja2 import meta
from PIL import Image, ImageDraw
from rich.cells import cell_len
from rich.console import Console

from flowers.config import TrainConfig
from flowers.evaluation.metrics import Counts, Summary, summarize
from flowers.options import described
from flowers.report.build import advice, phase_results
from flowers.report.charts import curves
from flowers.report.html import render_html, template
from flowers.report.parts import HeldParts
from flowers.report.record import EpochMetrics, PhaseResult, Report
from flowers.report.text import render_text
from tests.report.samples import answers, left_out, looks
from tests.report.templates import followed

FLOWERS = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
HOSTILE = "<script>alert(1)</script>"
FILES = {"ledger.parquet", "report.json"}  # beside the page


def evaluated(classes: list[str], n: int, seed: int) -> Summary:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), size=n)
    logits = rng.normal(size=(n, len(classes))) * 1.6
    logits[np.arange(n), labels] += 4.5
    p = np.exp(logits)
    return summarize(Counts.of(labels, p / p.sum(axis=1, keepdims=True)), classes)


@functools.cache
def thumbnail(seed: int) -> str:
    image = Image.new("RGB", (192, 192), (70, 110 + 8 * seed, 70))
    draw = ImageDraw.Draw(image)
    for i in range(8):
        x, y = 96 + 45 * np.cos(i * np.pi / 4), 96 + 45 * np.sin(i * np.pi / 4)
        draw.ellipse([x - 28, y - 28, x + 28, y + 28], fill=(230, 90 + 30 * seed, 120))
    draw.ellipse([68, 68, 124, 124], fill=(240, 200, 60))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def fake_report(classes: list[str] = FLOWERS, n: int = 367, **changes: Any) -> Report:
    k = len(classes)
    rows = [(i, classes[i % k], classes[(i + (i == 3)) % k]) for i in range(5)]
    history = [
        {
            "epoch": e, "phase": "head" if e < 15 else "tail", "loss": 0.11 + 1.45 * 0.72**e,
            "learning_rate": 0.01 * 0.94**e, "val_accuracy": 0.93 - 0.5 * 0.6**e - 0.0016 * max(0, e - 12),
            "val_macro_accuracy": 0.92 - 0.5 * 0.6**e, "val_log_loss": 0.24 + 1.2 * 0.68**e + 0.003 * max(0, e - 10),
            "seconds": 0.31,
        }
        for e in range(1, 21)
    ]  # fmt: skip
    report: dict[str, Any] = {
        "schema": 1, "name": "flowers-20261107", "sample": False, "created": "2026-11-07T14:03:22+00:00",
        "command": "python -m jobs.train --recipe full --source flower_photos --out runs/flowers-20261107",
        "data": {
            "source": "flower_photos", "listed": 3676, "found": 3670, "used": 3657, "quarantined": 13,
            "reasons": {"duplicate": 9, "truncated": 3, "not_an_image": 1}, "classes": classes,
            "per_class": {c: 734 for c in classes}, "notes": ["a split on disk: Train/ (train)"],
            "near_duplicates": 5, "near_groups": 2, "near_examples": [["roses/1.jpg", "roses/<copy>.jpg"]],
        },
        "split": {
            "train": 2925, "validation": 365, "test": 367, "sha256": "9c1f" * 16,
            "per_class": {c: {"train": 585, "validation": 73, "test": 73} for c in classes},
        },
        "validation": evaluated(classes, 365, 1), "test": evaluated(classes, n, 2),
        "best_epoch": 12, "monitor": "accuracy", "history": history,
        "predictions": [
            {
                "path": f"{true}/{4568123 + i}_0a1b{i}c2d3e.jpg", "label": true, "predicted": predicted,
                "score": 0.93 - 0.11 * i, "thumbnail": thumbnail(i),
                "top": [{"label": predicted, "score": 0.93 - 0.11 * i}, {"label": classes[i % k - 1], "score": 0.04}],
            }
            for i, true, predicted in rows
        ],
        "unknown": {
            "allowed": 0.05, "rejected": {"value": 0.041, "n": n, "low": 0.025, "high": 0.066},
            "accuracy": {"value": 0.95, "n": n - 15, "low": 0.92, "high": 0.97},
            "detected": {"shuffled photos": {"value": 0.9, "n": 20, "low": 0.699, "high": 0.972}},
        },
        "timing_s": {
            "total": 96.4, "start": 6.1, "read": 14.2, "features": 58.3, "train": 9.7, "evaluate": 2.4, "save": 3.2,
        },
        "images_per_s": {"features": 62.7, "read": 257.5},
        "features": {"hits": 0, "computed": 3657, "cache": "runs/cache/features/5d0ce7a1"},
        "backbone": "mobilenet_v3_large", "weights": "imagenet", "weights_sha256": "ab12" * 16, "image_size": 224,
        "precision": "float32", "precision_reason": "the processor has no bfloat16 units", "seed": 7,
        "bundle": "runs/flowers-20261107/bundle",
        "warnings": ["13 of 3,670 files were quarantined, see ledger.parquet"],
        "config": {"epochs": 20, "batch_size": 64, "optimizer": {"name": "adam", "learning_rate": 0.01}},
        "versions": {"python": "3.11.7", "keras": "3.15.0", "ray": "2.60.0"},
    }  # fmt: skip
    return Report.model_validate(report | changes)


def full_report(folder: Path, classes: list[str] = FLOWERS, n: int = 60) -> Report:
    """A report with photos of every kind."""
    made, files = answers(folder, classes, n), left_out(folder)
    report = fake_report(classes, test=made.summary(), calibration=made.calibration(None, 0, ""), **looks(made, folder))
    near = files[0].model_copy(update={"name": "near-duplicates", "meaning": "the same picture"})
    return report.model_copy(update={"data": report.data.model_copy(update={"left_out": files, "near": near})})


def least(**changes: Any) -> Report:
    """A report of one class, with everything empty that can be."""
    empty = summarize(Counts.zero(1), ["one"])
    report = fake_report(["one"], test=empty, validation=empty, history=[], predictions=[], warnings=[], config={})
    none = {"train": 0, "validation": 0, "test": 0}
    data = report.data.model_copy(update={"found": 0, "used": 0, "quarantined": 0, "reasons": {}})
    split = report.split.model_copy(update=none | {"per_class": {}})
    timing = report.timing_s.model_validate(dict.fromkeys(type(report.timing_s).model_fields, 0.0))
    speed = report.images_per_s.model_copy(update={"read": None, "features": None})
    parts = {"data": data, "split": split, "timing_s": timing, "images_per_s": speed, "versions": {}, "command": ""}
    return report.model_copy(update=parts | changes)


class Page(HTMLParser):
    """Open tags must close in order; collects addresses, headings and texts."""

    VOID = frozenset({"meta", "img", "br", "path", "rect", "use", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.images_without_alt = 0
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.addresses += [v or "" for a, v in attrs if a in ("src", "href", "xlink:href", "action", "srcset")]
        self.images_without_alt += tag == "img" and not given.get("alt")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def terminal(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(render_text(report))
    return out.getvalue()


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    report = full_report(tmp_path).model_copy(update={"trainable": "block_12", "cut": "block_12_add", "streamed": True})
    html = render_html(report)
    page = Page(html)
    outside = [a for a in page.addresses if not a.startswith(("data:image/", "#")) and a not in FILES]
    assert outside == []
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert sum(a.startswith("#cell-") for a in page.addresses) >= 25
    without_images = re.sub(r'"data:image/[^"]*"', "", html)
    assert not re.search(r"https?:|//|@import|url\((?!#)", without_images)
    assert "script" not in page.tags
    assert page.images_without_alt == 0
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.tags.count("svg") == 3
    assert page.tags.count("img") > 100
    for text in (
        "Results on test photos", "3,670", "truncated", "62.7", "✗ wrong", "best, epoch 12", "feature cache",
        "Worst mistakes", "Least certain right answers", "roses taken for daisy: ", "Accuracy by brightness",
        "same bytes as <b>another", "<i>.jpg",
        "runs/cache/features/5d0ce7a1", "bfloat16", "decoded again each epoch", "block_12", "tail", "9c1f9c1f",
    ):  # fmt: skip
        assert text in page.text
    assert "does not add up" not in page.text
    assert "sample run" not in page.text


def test_page_is_the_same_every_time_also_in_threads() -> None:
    report = fake_report()
    alone = render_html(report)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(render_html, [report] * 6)) == {alone}


def test_sample_banner_and_warnings() -> None:
    page = Page(render_html(fake_report(sample=True, warnings=["a", "b <i>"])))
    assert "says nothing about real flowers" in page.text
    assert "B <i>." in page.text
    assert "says nothing" in " ".join(terminal(fake_report(sample=True)).split())


def test_hostile_texts_are_escaped() -> None:
    classes = [HOSTILE, '"><img src=x onerror=1>', "a & b", "naïve", "雛菊"]
    report = fake_report(classes, name=HOSTILE, command=HOSTILE, warnings=[HOSTILE], config={HOSTILE: HOSTILE})
    data = report.data.model_copy(update={"reasons": {HOSTILE: 1}, "source": HOSTILE})
    odd = report.predictions[0].model_copy(update={"path": HOSTILE + "\udcff", "thumbnail": "javascript:alert(1)"})
    report = report.model_copy(update={"data": data, "predictions": [odd, *report.predictions[1:]]})
    page = Page(render_html(report))
    assert "script" not in page.tags
    assert page.tags.count("img") == 4
    assert not [a for a in page.addresses if "javascript" in a]
    assert HOSTILE in page.text
    render_html(report).encode()
    assert "\x1b" not in terminal(fake_report(["a\x1b[31m", "[bold]b[/bold]"]))
    assert "[bold]b[/bold]" in terminal(fake_report(["a\x1b[31m", "[bold]b[/bold]"]))


@pytest.mark.parametrize("k", [2, 3, 100, 600])
def test_few_and_many_classes(k: int, tmp_path: Path) -> None:
    classes = [f"class number {i}" for i in range(k)]
    report = full_report(tmp_path, classes, n=4 * k)
    html = render_html(report)
    page = Page(html)
    assert page.text.count("class number 1") > 3
    assert ("cells have photos that are not kept" in page.text) == (k > 3)
    assert page.tags.count("img") < 190
    assert len(html) < 1_500_000
    text = terminal(report)
    assert (f"lowest 12 of {k}" in text) == (k > 3)
    assert len(text.splitlines()) < 40


def test_without_test_photos_validation_is_reported() -> None:
    empty = summarize(Counts.zero(5), FLOWERS)
    page = Page(render_html(fake_report(test=empty)))
    assert "Results on validation photos" in page.text
    assert "nan" not in page.text.lower().split()
    assert "validation photos" in terminal(fake_report(test=empty))
    both = fake_report(test=empty, validation=empty)
    Page(render_html(both))
    terminal(both)


def test_files_that_do_not_add_up_are_named() -> None:
    report = fake_report()
    data = report.data.model_copy(update={"found": report.data.found + 2})
    report = report.model_copy(update={"data": data})
    assert "does not add up: 2 unaccounted for" in Page(render_html(report)).text


def test_the_least_report() -> None:
    for report in (least(), least(created="", precision_reason=""), least(sample=True)):
        page = Page(render_html(report))
        assert page.tags.count("svg") == 0
        assert "nan" not in page.text.lower().split()
        assert "–" in terminal(report)


def test_the_page_reads_what_the_report_has() -> None:
    """Also in branches that no report of these tests takes; below the first level as far as the types say."""
    page = template("report.html")
    tree = page.environment.parse(Path(page.filename or "").read_text(encoding="utf-8"))
    given = {"r", "facts", "held_name", "run", "metrics", "curves", "reliability", "monitor", "time_parts", "split"}
    given |= {"spreads", "folds_said", "limit_said", "search"}
    read = meta.find_undeclared_variables(tree) - set(HeldParts.__dataclass_fields__)
    assert read == given | {"unaccounted", "details"}
    assert followed(tree, {"r": Report, "held": Summary}) > 20


def test_a_wrong_name_in_the_template_is_an_error() -> None:
    environment = template("report.html").environment
    filters = ("percent", "count", "short", "fixed(2)", "value(true)", "interval(true)", "seconds", "css")
    for wrong in ("{{ r.features.key }}", *(f"{{{{ r.features.key | {name} }}}}" for name in filters)):
        with pytest.raises((jinja2.UndefinedError, TypeError), match=r"no attribute|Undefined"):
            environment.from_string(wrong).render(r=fake_report())


def test_history_with_gaps_and_one_epoch() -> None:
    line = fake_report().history[0]
    none = dict.fromkeys(("val_accuracy", "val_macro_accuracy", "val_log_loss", "phase"))
    gap = line.model_copy(update=none)
    for history, plots in (([line], 2), ([gap], 1), ([gap, line], 2), ([], 0)):
        assert Page(render_html(fake_report(history=history, best_epoch=1))).tags.count("svg") == plots


@pytest.mark.parametrize("monitor", described(TrainConfig)["monitor"].choices)
def test_the_monitored_metric_is_drawn_and_its_best_epoch_marked(monitor: str) -> None:
    drawn = curves(fake_report(monitor=monitor))
    assert all("best, epoch 12" in curve.svg for curve in drawn)
    name = "validation log-loss" if monitor == "log_loss" else monitor.replace("_", " ")
    [marked] = [curve.svg for curve in drawn if "in the best epoch, 12." in curve.svg]
    assert re.search(f"[:,] {name} 0.[0-9]+ in the best epoch", marked)


@pytest.mark.parametrize("classes", [FLOWERS, ["x" * 70, "雛菊" * 30, "c"]])
def test_summary_fits_80_columns(classes: list[str]) -> None:
    report = fake_report(classes)
    deep = report.predictions[1].model_copy(update={"path": "deep/" * 40 + "file.jpg"})
    report = report.model_copy(update={"predictions": [report.predictions[0], deep, *report.predictions[2:]]})
    text = terminal(report)
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert len(re.findall(r"^\S.* \| original: .+ \| predicted: .+ \(0\.\d\d\)$", text, re.M)) == 5
    assert max(cell_len(line) for line in terminal(report, 40).splitlines()) <= 40


def test_the_page_says_what_was_understood_and_what_is_there_twice() -> None:
    page = render_html(fake_report())
    assert "A split on disk: Train/ (train)." in page
    assert "5 photos are near-duplicates: 2 groups" in page
    assert "roses/1.jpg, roses/&lt;copy&gt;.jpg" in page  # of a report that names no more of them
    data = fake_report().data.model_copy(update={"near_duplicates": 0, "near_examples": []})
    assert "near-duplicates" not in render_html(fake_report(data=data))


def line(epoch: int, phase: str, accuracy: float | None, loss: float | None) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        phase=phase,
        loss=0.1,
        val_accuracy=accuracy,
        val_macro_accuracy=accuracy,
        val_log_loss=loss,
        learning_rate=0.1,
        seconds=1,
    )


def test_what_each_phase_reached() -> None:
    lines = [
        line(1, "head", 0.7, 0.5),
        line(2, "head", 0.8, 0.6),
        line(3, "tail", 0.9, 0.4),
        line(4, "tail", None, None),
    ]
    assert phase_results(lines, 3) == [
        PhaseResult(name="head", epochs=2, val_accuracy=0.8, val_log_loss=0.5, kept=False),
        PhaseResult(name="tail", epochs=2, val_accuracy=0.9, val_log_loss=0.4, kept=True),
    ]


@pytest.mark.parametrize(
    ("accuracy", "kept", "monitor", "said"),
    [
        (0.9, 3, "log_loss", ""),
        (0.9, 2, "log_loss", "better log-loss at no less accuracy .* --monitor accuracy"),
        (0.7, 2, "log_loss", "better log-loss at no less accuracy .* --augment standard"),
        (0.8, 2, "accuracy", "a higher accuracy than the head.* --augment standard"),
    ],
)
def test_training_deeper_that_did_not_pay_is_one_line(accuracy: float, kept: int, monitor: str, said: str) -> None:
    phases = phase_results([line(2, "head", 0.8, 0.5), line(3, "tail", accuracy, 0.6)], kept)
    text = advice(phases, monitor)
    assert re.search(said, text)
    assert bool(text) == bool(said)
    report = fake_report(phases=phases, advice=text, best_epoch=kept)
    shown, page = " ".join(terminal(report).split()), render_html(report)
    assert f"kept: epoch {kept}" in shown
    assert "accuracy 80.0 % log-loss 0.500" in shown
    assert ("did not pay" in shown) == ("did not pay" in page) == bool(said)
    assert "What each phase reached" in page
    assert advice(phases[:1], monitor) == "", "the head alone"


def test_the_spread_over_folds_what_was_searched_and_what_fits_into_a_time_limit() -> None:
    spread = {"mean": 0.815, "sd": 0.0213, "low": 0.77, "high": 0.84}
    fold = {"train": 60, "validation": 20, "held_out": 20, "best_epoch": 7}
    metrics = {"accuracy": 0.77, "macro_accuracy": 0.76, "log_loss": 0.6}
    report = fake_report(
        ["a", "b"],
        cross_validation={
            "folds": [fold | metrics, fold | metrics | {"train": 61}],
            **dict.fromkeys(metrics, spread),
            "held_out": evaluated(["a", "b"], 40, 3),
        },
        search=[
            {"options": {}, "best_epoch": 9, "val_accuracy": 0.8, "val_log_loss": 0.5, "chosen": False},
            {"options": {"dropout": 0.5}, "best_epoch": 7, "val_accuracy": 0.9, "val_log_loss": 0.4, "chosen": True},
        ],
        time_limit={
            "limit": 60.0, "training": 31.4, "used": 30.0,
            "phases": [{"name": "head", "most": 60, "fit": 9}, {"name": "tail", "most": 12, "fit": 0}],
        },
    )  # fmt: skip
    text = " ".join(terminal(report, 400).split())
    assert "2 folds, photos held out" in text
    assert "accuracy 81.5 % 2.1 % 77.0 %–84.0 %" in text
    assert "each judged once by a training on 60 or more others; the options were chosen with" in text
    limit = (
        "time limit 60 s: 31 s of it for this training, which took 30 s; head: 9 of 60 epochs fit; tail: no epoch fits"
    )
    assert f"{limit}; the job took 36 s longer than that" in text
    page = Page(render_html(report))
    assert "2 folds" in page.text
    assert "head: 9 of 60 epochs fit" in page.text
    assert page.text.count("77.0 %") >= 2, "every fold has a row"
