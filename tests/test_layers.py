"""The layout: arrows point down only, `import flowers` is light."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowers import interpreter
from flowers.interpreter import NEWEST, OLDEST, PACKAGES, complaint

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("flowers", "jobs", "serving", "docs", "tests", "benchmarks")

# Who may import whom, among the top folders and inside flowers/ (itself always; `import flowers` always).
TOP_IMPORTS = {
    "flowers": {"flowers"},
    "jobs": {"jobs", "flowers"},
    "serving": {"serving", "flowers"},
    "docs": {"docs", "jobs", "serving", "flowers"},
    "tests": {"tests", "docs", "jobs", "serving", "flowers"},
    "benchmarks": set(TOPS),  # with the tests' tools to start and kill processes
}
# Rows from the bottom up: a row may import those above it in this table that it names.
BASE = ["errors", "text", "storage"]
FLOWERS_IMPORTS: dict[str, list[str]] = {
    "interpreter": [],
    "errors": [],
    "text": [],
    "bounded": [],
    "storage": ["errors"],
    "locks": ["errors", "storage"],
    "options": BASE,
    "cli": [*BASE, "options"],
    "progress": ["errors", "text"],
    "data": [*BASE, "bounded"],
    "model": [*BASE, "data"],
    "config": ["text", "options", "storage", "data", "model"],
    "inference": [*BASE, "model"],
    "cluster": BASE,
    "doctor": [*BASE, "cluster"],
    "features": [*BASE, "data", "model", "inference", "cluster"],
    "runs": [*BASE, "locks", "config", "data"],
    "typicality": [],
    "bundle": [*BASE, "data", "model", "inference", "runs", "typicality"],
    "predictor": [*BASE, "data", "model", "inference", "bundle", "typicality"],
    "plan": [*BASE, "config", "model", "cluster", "features", "runs"],
    "prediction": [
        *BASE,
        "locks",
        "options",
        "data",
        "model",
        "inference",
        "cluster",
        "bundle",
        "predictor",
        "typicality",
    ],
    "evaluation": [*BASE, "data", "model", "inference", "bundle", "predictor", "prediction", "typicality"],
    "published": [*BASE, "bundle", "evaluation", "runs"],
    "training": [
        *BASE,
        "options",
        "config",
        "cluster",
        "data",
        "model",
        "features",
        "runs",
        "bundle",
        "evaluation",
        "plan",
        "progress",
        "typicality",
    ],
    "report": [*BASE, "options", "data", "evaluation", "runs", "plan", "features", "training"],
    "export": [*BASE, "data", "inference", "bundle", "report"],
    "tracking": [*BASE, "runs", "bundle", "evaluation", "predictor", "report"],
}
FLOWERS_IMPORTS["pipelines"] = list(FLOWERS_IMPORTS)

# Packages that only the extra `export` has, imported where a format needs them.
EXPORT = {"ai_edge_litert", "flatbuffers", "nncf", "onnx", "onnxruntime", "tf2onnx"}
VAGUE = {"utils.py", "common.py", "helpers.py"}
LIGHT = [
    "flowers",
    "flowers.config",
    "flowers.cli",
    "flowers.errors",
    "flowers.data.split",
    "flowers.plan",
    "flowers.bundle",
    "flowers.predictor",
    "flowers.features.extraction",
    "flowers.pipelines.train",
    "flowers.pipelines.publish",
    "flowers.pipelines.export",
    "flowers.pipelines.predict",
    "flowers.pipelines.evaluate",
    "flowers.pipelines.doctor",
    "flowers.pipelines.suspects",
    "flowers.pipelines.next",
    "flowers.pipelines.pack",
    "jobs.train",
    "jobs.predict",
    "jobs.evaluate",
    "serving.__main__",
]
HEAVY = {"tensorflow", "keras", "ray"}
# Modules of flowers/ that import TensorFlow or Keras at their top, or a module that does.
TENSORFLOW = {
    *(f"model/{name}" for name in ("augmentation", "backbones", "classifier", "cuts", "depthwise", "gradients")),
    *("model/heatmap", "inference/conversion", "inference/tensorflow_engine"),
    *(f"export/{name}" for name in ("keras", "litert", "onnx", "saved_model")),
    *(f"training/{name}" for name in ("best", "contact_sheet", "history", "loop", "phase", "schedule", "step")),
    *("training/trainer", "training/usual"),
}
# All others that need it import it in a function, those that are named here in one or a few.
LATE = {
    *("cluster/session", "model/precision", "bundle"),  # TensorFlow or Keras itself
    *("features/frozen", "pipelines/train", "pipelines/fit"),  # modules of `TENSORFLOW`
}


@functools.cache
def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """Dotted names that a module imports anywhere; `package` is what its relative imports start from."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def imports_of(path: Path) -> set[str]:
    package = list(path.relative_to(ROOT).parent.parts)
    return imported(ast.parse(path.read_text(encoding="utf-8")), package)


def part_of(path: Path) -> str:
    """The row of FLOWERS_IMPORTS that a file of flowers/ belongs to; "" for flowers/__init__.py."""
    first = path.relative_to(ROOT / "flowers").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


@functools.cache
def parts() -> set[str]:
    return {part_of(path) for path in sources("flowers")} - {""}


def test_imports_are_read_in_every_form() -> None:
    code = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h"
    assert imported(ast.parse(code), ["flowers", "data"]) == {
        "a.b",
        "c",
        "c.d",
        "flowers.data",
        "flowers.data.e",
        "flowers.g",
        "flowers.g.h",
    }


@pytest.mark.parametrize("top", TOPS)
def test_folders_import_downwards_only(top: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(top)
        for name in sorted(imports_of(path))
        if name.split(".")[0] in set(TOPS) - TOP_IMPORTS[top]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_part_of_flowers_is_in_the_table() -> None:
    unknown = parts() - set(FLOWERS_IMPORTS)
    assert not unknown, (
        f"flowers/ has {sorted(unknown)}, which FLOWERS_IMPORTS in tests/test_layers.py does not name: "
        "add a row that says what it may import (and add it to the rows above it that may import it)"
    )


def test_the_table_has_no_circle() -> None:
    done: set[str] = set()
    for part, allowed in FLOWERS_IMPORTS.items():
        assert set(allowed) <= done | {part}, f"{part} may only import rows above it"
        done.add(part)


def test_flowers_imports_downwards_only() -> None:
    wrong = []
    for path in sources("flowers"):
        part = part_of(path)
        if part and part not in FLOWERS_IMPORTS:
            continue  # the test above names it
        allowed = {part, *FLOWERS_IMPORTS.get(part, [])}
        for name in sorted(imports_of(path)):
            head, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if head == "flowers" and target in parts() & set(FLOWERS_IMPORTS) and target not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}; allowed: {sorted(allowed - {''})}")
    assert not wrong, "\n".join(wrong)


def names_of(paths: set[str]) -> set[str]:
    return {f"flowers.{path.replace('/', '.')}" for path in paths}


def test_tensorflow_is_imported_where_it_is_said() -> None:
    """At the top of the modules in TENSORFLOW, in functions of those in LATE, and nowhere else."""
    needs = {"tensorflow", "keras"} | names_of(TENSORFLOW)
    top, late = set(), set()
    for path in sources("flowers"):
        tree, package = ast.parse(path.read_text(encoding="utf-8")), list(path.relative_to(ROOT).parent.parts)
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        inside = set().union(*(imported(node, package) for node in functions))
        # Neither functions nor `if TYPE_CHECKING`.
        whole = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        name = str(path.relative_to(ROOT / "flowers").with_suffix(""))
        if imported(whole, package) & needs:
            top.add(name)
        if inside & needs:
            late.add(name)
    assert top == TENSORFLOW
    assert late | {"cluster/session"} == LATE  # which does it by name


def test_names_say_what_a_file_does() -> None:
    vague = [str(path.relative_to(ROOT)) for path in sources(*TOPS) if path.name in VAGUE]
    assert not vague, f"name these after what they do: {vague}"


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def loaded_by(modules: list[str]) -> dict[str, list[str]]:
    """After each import, in order and in one fresh process: which of HEAVY have been loaded."""
    code = (
        "import importlib, json, sys\nseen = {}\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    seen[name] = sorted({HEAVY!r} & set(sys.modules))\n"
        "print(json.dumps(seen))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_help_of_a_job_is_quick() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "jobs.train", "--help"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.startswith("Usage: python -m jobs.train"), result.stderr
    seen = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "flowers.config" in seen
    assert not HEAVY & seen


def test_imports_stay_light() -> None:
    """LIGHT modules load neither TensorFlow nor Ray; what Ray's data workers load may use Ray only."""
    workers = "flowers.data.reading"
    seen = loaded_by([name for name in [*LIGHT, workers] if exists(name)])
    assert {name: heavy for name, heavy in seen.items() if heavy and name != workers} == {}
    assert set(seen.get(workers, [])) <= {"ray"}


def test_processes_that_share_a_gpu_leave_each_other_room() -> None:
    """TensorFlow reads it when it is imported, which only modules of ours do (TENSORFLOW), or what they call."""
    code = "import os, flowers; print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    for given, expected in (({}, "true"), ({"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, "false")):
        env = {name: value for name, value in os.environ.items() if name != "TF_FORCE_GPU_ALLOW_GROWTH"} | given
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env, check=True
        )
        assert done.stdout.strip() == expected


def test_all_packages_that_a_program_imports_are_looked_for() -> None:
    names = {name.split(".")[0] for path in sources("flowers", "jobs", "serving") for name in imports_of(path)}
    named = set(PACKAGES) - {"python_multipart"}  # which FastAPI imports
    assert named == names - set(sys.stdlib_module_names) - set(TOPS) - EXPORT
    text = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert text == f">=3.{OLDEST[1]},<3.{NEWEST[1] + 1}"


def test_what_is_committed_is_source() -> None:
    """Not a model, a photo or a run that a command or a test left in the checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]
    folders = {path.relative_to(ROOT).parts[0] for path in files if path.parent != ROOT}
    assert folders == {*TOPS, ".ci", "deploy"}
    assert {path.name for path in files if path.suffix in {".png", ".csv", ".json"}} == {
        "page.png", "report.png", "suspects.csv", "grafana.json"
    }  # fmt: skip
    assert max(path.stat().st_size for path in files) <= 500_000


PROGRAMS = [*(f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("[a-z]*.py")), "serving"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_python_without_the_packages_is_one_line(program: str) -> None:
    # -S: without site-packages, as any other Python that somebody has.
    words = [sys.executable, "-S", "-m", program, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sys.executable} (Python 3.")
    assert f"lacks packages: click, rich, pydantic and {len(PACKAGES) - 3} more; activate" in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_package_that_is_missing_and_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not complaint()
    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "find_spec", lambda name: None if name == "openvino" else name)
        assert "lacks packages: openvino; activate" in complaint()
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "required is Python 3.11 to 3.13; activate" in complaint()
