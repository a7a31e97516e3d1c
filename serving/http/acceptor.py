"""The acceptor: a thread that takes connections, answers probes itself, and hands all others to the photos' loop.

Whoever asks whether the server lives is answered at once, however many photos, bytes or connections keep the photos'
loop busy. A connection on which nothing comes never gets there.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Factory = Callable[[], asyncio.Protocol]

_PROBES = (b"GET /v2/health/", b"HEAD /v2/health/")
# No file is left to open: others end meanwhile.
_NO_MORE_FILES_S = 0.05
_BACKLOG = 2048


class Acceptor:
    """Takes connections in a thread of its own, from now on.

    Args:
        listening: a socket that is bound.
        photos: makes the protocol of a connection in the running loop.
        probes: makes that of a probe, in the thread; it has to close the connection after one answer.
        silence_s: a connection on which nothing comes for so long is closed.
    """

    def __init__(self, listening: socket.socket, photos: Factory, probes: Factory, silence_s: float) -> None:
        self._listening, self._photos, self._probes, self._silence_s = listening, photos, probes, silence_s
        self._photos_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._sorting: set[asyncio.Task[None]] = set()
        self._handed_over: set[asyncio.Task[object]] = set()
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        self._accepting = self._loop.create_task(self._accept())
        self._thread = threading.Thread(target=self._loop.run_forever, name="accept", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes connections."""
        return self._thread.is_alive() and not self._accepting.done()

    async def close(self) -> None:
        """Takes no new connection from now on; those that have come are sorted still."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(), self._loop))

    def end(self) -> None:
        """Ends the thread, after `close`."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listening)
            except OSError:
                await asyncio.sleep(_NO_MORE_FILES_S)
            else:
                self._sort(connection)

    async def _close(self) -> None:
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        with suppress(OSError):  # none is left
            while True:
                self._sort(self._listening.accept()[0])
        self._listening.close()

    def _sort(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = self._loop.create_task(self._sorted(connection))
        self._sorting.add(task)
        task.add_done_callback(self._sorting.discard)

    async def _sorted(self, connection: socket.socket) -> None:
        """Waits for the first bytes, and finds who answers."""
        arrived = asyncio.Event()
        self._loop.add_reader(connection, arrived.set)
        try:
            async with asyncio.timeout(self._silence_s):
                await arrived.wait()
            first = connection.recv(len(_PROBES[1]), socket.MSG_PEEK)
        except OSError:  # also a TimeoutError
            first = b""
        finally:
            self._loop.remove_reader(connection)
        if not first:
            connection.close()
        elif first.startswith(_PROBES):
            await self._loop.connect_accepted_socket(self._probes, connection)
        else:
            self._photos_loop.call_soon_threadsafe(self._hand_over, connection)

    def _hand_over(self, connection: socket.socket) -> None:
        """Runs in the photos' loop."""
        task: asyncio.Task[object] = self._photos_loop.create_task(
            self._photos_loop.connect_accepted_socket(self._photos, connection)
        )
        self._handed_over.add(task)
        task.add_done_callback(self._handed_over.discard)
