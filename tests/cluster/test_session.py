"""Starting what a job stands on."""

from __future__ import annotations

import pytest

from flowers.cluster.session import background, ray_session
from flowers.errors import FlowersError


def refuse(**_: object) -> None:
    raise ConnectionError("no answer\nand much more")


@pytest.mark.parametrize(("address", "place"), [("", "Ray on this machine"), ("10.0.0.9:6379", "10.0.0.9:6379")])
def test_ray_that_does_not_start_is_one_line(address: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FlowersError, match=place) as caught, ray_session(verbose=False):
        pass
    assert "no answer" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_background_waits_in_the_future() -> None:
    future = background(lambda: 1 // 0, "divide")
    with pytest.raises(ZeroDivisionError):
        future.result()
