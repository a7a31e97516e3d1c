"""constraints.txt, made by `make lock`: complete for `.[dev]`, one version of each package, without addresses."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
DISTRIBUTION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"]
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, LINES)}


def closure(extra: str) -> set[NormalizedName]:
    """Names of all packages that `.[extra]` needs on this Python, by what installed packages say of themselves."""
    todo, seen = [Requirement(f"{DISTRIBUTION}[{extra}]")], set[tuple[NormalizedName, frozenset[str]]]()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # of .[gpu] and .[aws] only the names are known here
            continue
        for line in lines:
            found = Requirement(line)
            marker = found.marker
            if marker is None or any(marker.evaluate({"extra": chosen}) for chosen in {"", *wanted.extras}):
                todo.append(found)
    return {name for name, _ in seen} - {canonicalize_name(DISTRIBUTION)}


@pytest.mark.parametrize("extra", ["dev", "gpu", "aws"])
def test_every_package_is_pinned(extra: str) -> None:
    names = closure(extra)
    assert {"ray", "tensorflow", "keras"} <= names
    assert len(names) > 60
    assert not names - PINS.keys(), "run `make lock`"


def test_what_is_installed_is_what_is_pinned() -> None:
    for name in closure("dev"):
        pin = PINS[name]
        assert pin.marker is None or pin.marker.evaluate()
        assert pin.specifier.contains(version(name), prereleases=True), (
            f"{name} {version(name)}, pinned {pin.specifier}"
        )


def test_one_version_for_all_pythons_and_no_addresses() -> None:
    assert len(LINES) == len(PINS)
    for pin in PINS.values():
        assert pin.url is None
        assert [(part.operator, "*" in part.version) for part in pin.specifier] == [("==", False)]
    assert "://" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")
