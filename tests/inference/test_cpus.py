"""The CPUs that a process may use, in a container too."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowers.inference import engine


@pytest.mark.parametrize(
    ("version", "texts", "cpus"),
    [
        (2, ["max 100000"], 8),
        (2, ["250000 100000"], 2),
        (2, ["50000 100000"], 1),
        (1, ["-1", "100000"], 8),
        (1, ["400000", "100000"], 4),
        (0, [], 8),
    ],
)
def test_a_container_has_no_more_cpus_than_it_is_granted(
    version: int, texts: list[str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / str(number) for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(f"{text}\n", encoding="ascii")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(engine, "_CPU_MAX", paths[0] if version == 2 else tmp_path / "none")
    monkeypatch.setattr(engine, "_CPU_MAX_V1", paths if version == 1 else [tmp_path / "none"] * 2)
    assert engine.usable_cpus() == cpus
