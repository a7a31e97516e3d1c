"""What all tests share: versions in the header, the folder of real photos, a clean environment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_SHARED = "no shared data"
# Fixtures that start Ray, here or in another process: `make quick` leaves out the tests that ask for one.
STARTS_RAY = {"ray", "job", "server", "cluster_of_two", "head"}


# A shell ignores Ctrl-C for what it runs in the background, and so would the jobs that tests stop with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    def shown(*names: str) -> str:
        for name in names:
            try:
                return f"{names[0]} {version(name)}"
            except PackageNotFoundError:
                continue
        return f"{names[0]} absent"

    packages = [("ray",), ("tensorflow", "tensorflow-cpu"), ("keras",), ("pyarrow",), ("pillow",)]
    return "versions: " + ", ".join(shown(*names) for names in packages)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if STARTS_RAY & set(getattr(item, "fixturenames", ())):
            item.add_marker("ray")


@pytest.fixture(autouse=True)
def marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that starts Ray without saying so would make `make quick` slow."""
    yield
    if "ray" in sys.modules and not request.node.get_closest_marker("ray"):
        assert not sys.modules["ray"].is_initialized(), "a test that starts Ray needs the fixture `ray`"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `data` of FLOWERS_SHARED: real photos and weights, read-only."""
    data = Path(os.environ.get("FLOWERS_SHARED") or ROOT.parent / "shared").resolve() / "data"
    if not data.is_dir():
        pytest.skip(f"{NO_SHARED}: set FLOWERS_SHARED to the folder that holds data/")
    return data


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the caller's cluster or settings."""
    for name in list(os.environ):
        if name in {"RAY_ADDRESS", "TF_CONFIG"} or (name.startswith("FLOWERS_") and name != "FLOWERS_SHARED"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray on this machine, for the tests of one file."""
    from flowers.cluster.session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(verbose=False):
            yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if NO_SHARED in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} test(s) skipped for lack of shared data (FLOWERS_SHARED)")
