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
# At the end: a connection that has been taken may get its first bytes a little later.
_LAST_BYTES_S = 0.5


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
        # One task a connection, and what tells it that its first bytes are here or its time is over.
        self._sorting: dict[asyncio.Task[None], asyncio.Event] = {}
        listening.setblocking(False)
        # Else closed connections of the server before would keep it from listening, for a minute, and its own, which
        # inherit this, keep the next one. Nobody else can bind what somebody listens at.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.listen(_BACKLOG)
        self._accepting = True
        self._loop.add_reader(listening, self._accept)
        self._thread = threading.Thread(target=self._loop.run_forever, name="accept", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes connections."""
        return self._thread.is_alive() and self._accepting

    async def close(self) -> None:
        """Takes no new connection from now on, and returns when all that came have somebody who answers them."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(), self._loop))

    def end(self) -> None:
        """Ends the thread, after `close`."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _accept(self) -> None:
        """Takes one connection: other replicas that wait at the same socket get the next ones."""
        try:
            self._sort(self._listening.accept()[0])
        except BlockingIOError:
            pass
        except OSError:
            self._loop.remove_reader(self._listening)
            self._loop.call_later(_NO_MORE_FILES_S, self._accept_again)

    def _accept_again(self) -> None:
        if self._accepting:
            self._loop.add_reader(self._listening, self._accept)

    async def _close(self) -> None:
        self._accepting = False
        self._loop.remove_reader(self._listening)
        with suppress(OSError):  # no more wait
            while True:
                self._sort(self._listening.accept()[0])
        self._listening.close()
        for look in self._sorting.values():
            self._loop.call_later(_LAST_BYTES_S, look.set)
        if self._sorting:
            await asyncio.wait(self._sorting)

    def _sort(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        look = asyncio.Event()
        task = self._loop.create_task(self._sorted(connection, look))
        self._sorting[task] = look
        task.add_done_callback(self._sorting.pop)

    async def _sorted(self, connection: socket.socket, look: asyncio.Event) -> None:
        """Waits for the first bytes, and finds who answers."""
        self._loop.add_reader(connection, look.set)
        silence = self._loop.call_later(self._silence_s, look.set)
        await look.wait()
        silence.cancel()
        self._loop.remove_reader(connection)
        first = b""
        with suppress(OSError):  # none is there, or the client has gone
            first = connection.recv(len(_PROBES[1]), socket.MSG_PEEK)
        if not first:
            connection.close()
        elif first.startswith(_PROBES):
            await self._loop.connect_accepted_socket(self._probes, connection)
        else:
            taking = self._photos_loop.connect_accepted_socket(self._photos, connection)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(taking, self._photos_loop))
