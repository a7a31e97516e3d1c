"""The command that serves: when it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from flowers.errors import FlowersError
from serving import __main__ as command
from serving.options import Address


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
