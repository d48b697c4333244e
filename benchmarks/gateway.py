"""A TCP proxy that can go half-open: connections stand and new ones are accepted, and nothing comes through."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from processes import free_port

CHUNK = 1 << 16


class Gateway:
    """Forwards a port on loopback to another one.

    Args:
        target: the port of the server behind it.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._spawn(self._accept)

    def close_half(self) -> None:
        """From now on nothing is forwarded, in either direction; everybody is kept waiting."""
        self._open.clear()

    def heal(self, *, cut: bool) -> None:
        """Forward again. `cut` resets the connections of before; else what was held back arrives late."""
        if cut:
            self._cut()
        self._open.set()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal(cut=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._spawn(lambda client=client: self._connect(client))

    def _connect(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        self._spawn(lambda: self._forward(client, server, pair))
        self._spawn(lambda: self._forward(server, client, pair))

    def _forward(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        try:
            while data := source.recv(CHUNK):
                self._open.wait()
                target.sendall(data)
        except OSError:
            pass
        finally:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Close both ends, once: whoever still reads from one of them is woken."""
        with self._lock:
            known = pair in self._pairs
            self._pairs.discard(pair)
        if known:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _cut(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    @staticmethod
    def _spawn(work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="gateway", daemon=True).start()
