"""Machines made of network namespaces: each has an address, ports and a loopback of its own. Linux, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Each group of machines has a subnet of its own.
_NETWORK, _SUBNETS = "10.203", range(77, 177)
_TAKES_ONE = (
    "import socket, sys; s = socket.create_server((sys.argv[1], 0)); print(s.getsockname()[1], flush=True); s.accept()"
)
_REACHES = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


@dataclass(frozen=True)
class Machine:
    """One of them.

    Attributes:
        subnet: of its group.
        number: in its group, from 1 on.
    """

    subnet: int
    number: int

    @property
    def name(self) -> str:
        """Of the namespace."""
        return f"flowers{self.subnet}-{self.number}"

    @property
    def link(self) -> str:
        """What connects it with the others: down, it is cut off."""
        return f"fl{self.subnet}-{self.number}o"

    @property
    def host(self) -> str:
        """Its address."""
        return f"{_NETWORK}.{self.subnet}.{self.number}"

    @property
    def here(self) -> str:
        """The address at which it reaches this process."""
        return f"{_NETWORK}.{self.subnet}.254"

    @property
    def inside(self) -> list[str]:
        """Words before a command that runs there."""
        return ["ip", "netns", "exec", self.name]

    def with_own(self, folder: Path) -> list[str]:
        """The same; what the command writes into `folder` nobody else sees."""
        return [*self.inside, "sh", "-c", 'mount -t tmpfs flowers "$0" && mkdir "$0/tmp" && exec "$@"', str(folder)]


def can_be_made() -> bool:
    """Whether this process may make machines, and one of them reaches another."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    try:
        with machines(2) as (one, other):
            words = [*other.inside, sys.executable, "-c", _TAKES_ONE, other.host]
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as taking:
                assert taking.stdout is not None
                port = taking.stdout.readline().strip()
                words = [*one.inside, sys.executable, "-c", _REACHES, other.host, port]
                reached = subprocess.run(words, capture_output=True, check=False).returncode == 0
                taking.kill()
            return reached
    except (subprocess.CalledProcessError, RuntimeError):
        return False


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Machines that reach each other and this process, and nothing else."""
    with ExitStack() as stack:
        subnet, bridge = _bridge()
        stack.callback(_ip, "link", "del", bridge)
        made = [Machine(subnet, number) for number in range(1, count + 1)]
        _ip("address", "add", f"{made[0].here}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for machine in made:
            inner = f"fl{subnet}-{machine.number}i"
            _ip("netns", "add", machine.name)
            stack.callback(_ip, "netns", "del", machine.name)
            _ip("link", "add", machine.link, "type", "veth", "peer", "name", inner, "netns", machine.name)
            stack.callback(_ip, "link", "del", machine.link)
            _ip("link", "set", machine.link, "master", bridge, "up")
            for words in (("link", "set", "lo", "up"), ("link", "set", inner, "up")):
                _ip("-n", machine.name, *words)
            _ip("-n", machine.name, "address", "add", f"{machine.host}/24", "dev", inner)
        yield made


def _bridge() -> tuple[int, str]:
    """Makes a bridge for a subnet that nobody on this machine uses."""
    for subnet in _SUBNETS:
        name = f"flowers{subnet}"
        done = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, check=False)
        if done.returncode == 0:
            return subnet, name
    raise RuntimeError(f"no bridge could be made: {done.stderr.decode()}")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
