"""What all tests share: versions in the header, the folder of real photos, a clean environment."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyarrow import fs as pafs

from flowers import storage
from tests.browser import browser

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

ROOT = Path(__file__).resolve().parent.parent
NO_SHARED = "no shared data"
# Fixtures that start Ray, here or in another process: `make quick` leaves out the tests that ask for one.
# So it does with those of the store of objects, whose server takes seconds to start.
STARTS_RAY = {"ray", "job", "process", "server", "two_nodes", "s3"}
_shared_ray = ExitStack()
# What tests show a store of objects; Ray's processes have it from their start. The store takes any.
KEY, SECRET = "tests-key-id", "tests-secret-word"
os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


# A shell ignores Ctrl-C for what it runs in the background, `nohup` the end of the terminal, and so would the jobs that
# tests stop by them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that start Ray; groups these by folder, the longest first, and the others by file (`pytest -n 2`)."""
    for item in items:
        if STARTS_RAY & set(getattr(item, "fixturenames", ())):
            item.add_marker("ray")
        ray = item.get_closest_marker("ray")
        item.add_marker(pytest.mark.xdist_group(str((item.path.parent if ray else item.path).relative_to(ROOT))))
    items.sort(key=lambda item: (not item.get_closest_marker("ray"), item.path.parent.name != "faults"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look through half a million objects again and again."""
    gc.collect()
    gc.freeze()


def ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.fixture(autouse=True)
def marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts Ray without saying so would make `make quick` slow: it fails, also if it ends Ray again."""
    if not request.node.get_closest_marker("ray"):
        monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("a test that starts Ray needs the fixture `ray`"))


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


def start_ray() -> None:
    """Starts Ray on this machine, once for all tests: it takes ten seconds."""
    from flowers.cluster.session import ray_session

    if not ray_runs():
        os.environ.pop("RAY_ADDRESS", None)
        _shared_ray.enter_context(ray_session(verbose=False))


def stop_ray() -> None:
    """For a test that needs another one."""
    _shared_ray.close()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`mem://x/...` is a file system that is not the local one; it is kept in the folder returned."""
    root = tmp_path / "bucket"
    root.mkdir()
    filesystem = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    local = storage.resolve

    def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
        return (filesystem, uri.removeprefix("mem://")) if uri.startswith("mem://") else local(uri)

    monkeypatch.setattr(storage, "resolve", resolve)
    return root


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """A browser, once for all tests of pages."""
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


# Tests that cannot run where CI does, by the reason that they give.
CANNOT = ("root writes everywhere", "no file system can be mounted here")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that was skipped without need counts as one that failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    needless = [text for text in skipped if not any(reason in text for reason in CANNOT)]
    if os.environ.get("CI") and needless:
        reporter.write_line(f"{len(needless)} test(s) that CI can run were skipped: {needless[0]}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure() -> None:
    stop_ray()


@pytest.fixture
def ray() -> None:
    start_ray()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if NO_SHARED in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} test(s) skipped for lack of shared data (FLOWERS_SHARED)")
