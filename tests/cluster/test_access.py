"""Who is let into a cluster, and what is said to those who are not; the head is a stand-in that only checks tokens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from flowers import cli
from flowers.cluster.access import access, guarded
from flowers.cluster.session import ray_session
from flowers.doctor.checks import CHECKS
from flowers.errors import FlowersError, InputError
from jobs.doctor import main
from tests.conftest import stop_ray

RIGHT = "right-" * 6


class Head(grpc.GenericRpcHandler):
    """Answers what Ray's head is asked first: whether it is alive."""

    def __init__(self, token: str) -> None:
        self.token = token

    def service(self, call: Any) -> Any:
        sent = dict(call.invocation_metadata).get("authorization", "")

        def answer(_: bytes, context: Any) -> bytes:
            if self.token and sent != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if call.method.endswith("/CheckAlive") else None


def start(*handlers: grpc.GenericRpcHandler) -> tuple[Any, str]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def heads() -> Iterator[dict[str, str]]:
    """Addresses: of a head that asks for the token, of one that does not, of Ray's other ports, of nobody."""
    stop_ray()  # the tests' own, which would lose its token
    found = {"token": start(Head(RIGHT)), "open": start(Head("")), "other": start()}
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        yield {name: place for name, (_, place) in found.items()} | {"nobody": f"127.0.0.1:{held.getsockname()[1]}"}
    for server, _ in found.values():
        server.stop(None)


@pytest.fixture
def home(heads: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and nothing of tokens in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def keep(home: Path, token: str) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(token)


@pytest.mark.parametrize("where", ["file", "environment", "other file"])
@pytest.mark.parametrize("mode", [None, "", "token"])
def test_the_token_that_is_there_opens(
    where: str, mode: str | None, heads: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "environment":
        monkeypatch.setenv("RAY_AUTH_TOKEN", RIGHT)
    else:
        keep(home, RIGHT)
    if where == "other file":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / ".ray" / "auth_token"))
        monkeypatch.setenv("HOME", str(home / "none"))
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_ADDRESS", heads["token"])
    before, seen = dict(os.environ), dict[str, str]()
    monkeypatch.setattr("ray.init", lambda **given: seen.update(given, mode=os.environ["RAY_AUTH_MODE"]))
    with ray_session(verbose=False):
        assert seen["address"] == heads["token"]
        assert seen["mode"] == "token"
    assert {name: os.environ.get(name) for name in before if "AUTH" in name} == {
        name: value for name, value in before.items() if "AUTH" in name
    }


@pytest.mark.parametrize("mode", [None, "disabled", "token"])
@pytest.mark.parametrize("token", ["", "any"])
def test_a_head_without_tokens_lets_all_in(
    token: str, mode: str | None, heads: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        keep(home, token)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if mode == "token" and not token:  # Ray itself would refuse
        with pytest.raises(InputError, match=r"no token here.*unset RAY_AUTH_MODE"), access(heads["open"]):
            pass
        return
    with access(heads["open"]) as place:
        assert place == heads["open"]
        # With "token" this process would want one from all others, which have none: actors would end as they start.
        assert os.environ.get("RAY_AUTH_MODE") == ("disabled" if token else mode)


@pytest.mark.parametrize(
    ("token", "environment", "said"),
    [
        (None, {}, "asks for a token, and there is none here.*ray get-auth-token.*~/.ray/auth_token"),
        ("wrong", {}, "does not take the token of ~/.ray/auth_token.*ray get-auth-token"),
        (RIGHT, {"RAY_AUTH_TOKEN": "wrong"}, r"does not take the token of the environment \(RAY_AUTH_TOKEN\)"),
        (RIGHT, {"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled none is sent; unset RAY_AUTH_MODE"),
        (None, {"RAY_AUTH_MODE": "token"}, "no token here.*ray get-auth-token"),
        (None, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, r"cannot be read from /nowhere \(RAY_AUTH_TOKEN_PATH\)"),
    ],
)
def test_who_is_not_let_in_hears_why(
    token: str | None,
    environment: dict[str, str],
    said: str,
    heads: dict[str, str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token:
        keep(home, token)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", heads["token"])
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for 20 s and not say why"))
    with pytest.raises(InputError, match=said) as caught, ray_session(verbose=False):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("token", "authentication", "asks for a token, and there is none here"),
        ("nobody", "nodes", "nobody answers"),
    ],
)
def test_the_doctor_says_why_it_is_not_let_in(
    name: str,
    check: str,
    said: str,
    heads: dict[str, str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", heads[name])
    monkeypatch.setattr(cli, "_hide_logs", lambda: None)
    code, text = cli.outcome(main, "python -m jobs.doctor", [])
    assert (code, text) == (3, f"error: not fit for a long run: {check}; the lines above say what to do")
    _, first, *others = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["WRONG", check]
    assert said in first
    assert {line.split()[0] for line in others} == {"unknown"}
    assert len(others) == len(CHECKS) - 1


@pytest.mark.parametrize("name", ["token", "open"])
def test_whether_a_head_asks_for_a_token(name: str, heads: dict[str, str]) -> None:
    assert guarded(heads[name]) == (name == "token")


@pytest.mark.parametrize("address", ["{nobody}", "{other}", "127.0.0.1:1", "127.0.0.1:99999999"])
def test_where_no_head_is_it_is_said_at_once(
    address: str, heads: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for minutes"))
    name = address.format(**heads)
    monkeypatch.setenv("RAY_ADDRESS", name)
    with pytest.raises(FlowersError, match=r"nobody answers|is no head of Ray") as caught, ray_session(verbose=False):
        pass
    assert repr(name) in str(caught.value)
    assert "unset RAY_ADDRESS" in str(caught.value)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1", ":6379", "x:y"])
def test_an_address_of_another_kind_is_refused(address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("no job can use it"))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match="required is HOST:PORT of the head") as caught, ray_session(verbose=False):
        pass
    assert ("ray job submit" in str(caught.value)) == ("://" in address)


def test_auto_without_a_head(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", none)
    with pytest.raises(FlowersError, match="no Ray runs on this machine"), access("auto"):
        pass


def test_a_ray_of_its_own_gets_a_token_of_its_own(home: Path) -> None:
    tokens = []
    for _ in range(2):
        with access("") as place:
            assert not place
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) == 64
    keep(home, "mine")
    with access(""):  # whoever has one can also look at this Ray with it
        assert "RAY_AUTH_TOKEN" not in os.environ
