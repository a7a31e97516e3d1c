"""The command that serves: when it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flowers.cluster import nodes
from flowers.cluster.placement import Node
from flowers.errors import FlowersError, InputError, NoRoom
from serving import __main__ as command
from serving.options import Address, ServeOptions


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(command, "_LOOK_S", 0.01)
    monkeypatch.setattr(command, "lost", lambda: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Sends this process a signal as soon as the command listens for it: before, it would end the tests."""
    before = signal.getsignal(number)

    def when_heard() -> None:
        while signal.getsignal(number) is before:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    threading.Thread(target=when_heard, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(number: int) -> None:
    send(number)
    command._wait_for_the_end(None)


def test_a_second_ctrl_c_does_not_wait() -> None:
    send(signal.SIGINT)
    command._wait_for_the_end(None)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_it_ends_when_ray_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "lost", lambda: "Ray's process raylet")
    with pytest.raises(FlowersError, match="Ray's process raylet has ended, so the server ends"):
        command._wait_for_the_end(None)


def test_it_ends_when_the_proxy_has_ended() -> None:
    """Its port is held by the command, which does not listen there."""
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        address = Address(port=proxy.getsockname()[1])
        send(signal.SIGTERM)
        command._wait_for_the_end(address)
    with socket.socket() as held:
        held.bind(("127.0.0.1", address.port))
        with pytest.raises(FlowersError, match="Ray Serve's proxy has ended"):
            command._wait_for_the_end(address)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cpus": 8}, r"received 1, each with 8 CPUs \(--cpus\), but there is room for 0: 1 node of 2 CPUs; give each"),
        (
            {"replicas": 3, "cpus": 1},
            r"received 3, each with 1 CPU \(--cpus\), but .* 2: .*; give at most 2, or give each",
        ),
        ({"cpus": 1, "gpus": 0.5}, r"each with 1 CPU \(--cpus\) and 0.5 GPUs \(--gpus\), but there is room for 0"),
        ({"replicas": 3, "cpus": 1, "max_replicas": 4}, "received 3"),
    ],
)
def test_replicas_that_do_not_fit_are_refused(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "own_node", lambda: Node(2, 0))
    monkeypatch.setattr(command, "joined", lambda: None)
    with pytest.raises(NoRoom, match=said):
        command._check_room(ServeOptions(bundle="runs/one", **given))


def test_replicas_that_fit_or_that_a_cluster_may_find_room_for_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "own_node", lambda: Node(2, 0))
    command._check_room(ServeOptions(bundle="runs/one", replicas=20, cpus=0.1))
    monkeypatch.setattr(command, "joined", lambda: "head:6379")
    command._check_room(ServeOptions(bundle="runs/one", replicas=3, cpus=1, max_replicas=4))


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("flowers.errors.InputError: --sample-to: no", InputError, "--sample-to: no"),
        ("flowers.errors.NoRoom: --gpus: no", InputError, "--gpus: no"),
        ("flowers.errors.DamagedFile: it is damaged", FlowersError, "it is damaged"),
        ("ValueError: something", FlowersError, "ValueError: something"),
    ],
)
def test_the_error_of_a_replica_is_that_of_the_command(line: str, kind: type[FlowersError], said: str) -> None:
    error = command._replica_error(f"Traceback:\n  File x\n{line}\n")
    assert type(error) is kind
    assert str(error) == f"the server did not start: {said}"
