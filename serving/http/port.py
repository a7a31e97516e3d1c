"""The port of a server: the command binds it, and its replicas take connections from it.

The command binds it in its first second, alone, so nobody else gets it while no replica listens yet. All replicas take
connections out of one queue of the kernel's, which lasts when one is killed: who asks meanwhile waits for the next.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowers.errors import InputError


class Port:
    """A bound socket, which processes of the same user are given.

    Args:
        bound: the socket.
        path: of a local socket, at which `take` asks for it.
    """

    def __init__(self, bound: socket.socket, path: str) -> None:
        self._bound, self.path = bound, path
        self._asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._asked.bind(path)
        self._asked.listen()
        threading.Thread(target=self._give, name="give the port", daemon=True).start()

    def close(self) -> None:
        """Lets go of it: it is free when all who took it have closed theirs."""
        self._asked.close()
        self._bound.close()

    def _give(self) -> None:
        try:
            while True:
                connection, _ = self._asked.accept()
                with connection:
                    socket.send_fds(connection, [b"1"], [self._bound.fileno()])
        except OSError:  # it is closed
            return


def take(path: str) -> socket.socket:
    """The bound socket of a `Port` at `path`, which may be of another process.

    Raises:
        OSError: there is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(path)
        _, (number,), _, _ = socket.recv_fds(asking, 1, 1)
    return socket.socket(fileno=number)


@contextmanager
def hold(host: str, port: int, proxy: bool = False) -> Iterator[Port]:
    """Binds a port until the end, or until it is closed.

    Args:
        host: address of this machine, or a name of it.
        port: its number.
        proxy: whether Ray Serve's proxy, which binds by itself, shall listen there.

    Raises:
        InputError: the address is none of this machine, or taken.
    """
    try:
        family, place = resolve(host, port)
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror}; give an address of this machine") from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    with bound, tempfile.TemporaryDirectory(prefix="flowers-port-") as folder:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(place)
        except OSError as error:
            cure = "an address of this machine" if error.errno == errno.EADDRNOTAVAIL else "another port"
            raise InputError(f"--host {host} --port {port}: {error.strerror}; give {cure}") from error
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # else others might bind it until somebody listens
        if proxy:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made = Port(bound, os.path.join(folder, "port"))
        try:
            yield made
        finally:
            made.close()


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Family and address to bind to of whatever names one: IPv4, IPv6 with or without a zone, or a host's name.

    Raises:
        OSError: it names none.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, address
