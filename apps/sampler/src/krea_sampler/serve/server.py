"""The socket of the page: one thread a connection, not too many of them, and an end that waits for nobody."""

import socket
import socketserver
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from krea_sampler.serve.web import Handler, Studio

__all__ = ["Server"]

MAX_CONNECTIONS = 64


class Server(ThreadingHTTPServer):
    """Listens from the moment it is made; `close` ends every connection and waits for their threads."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], studio: Studio) -> None:
        self.studio = studio
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler.of(studio))

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called, which can take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse connections beyond a number that no person's browser needs."""
        with self._lock:
            return len(self._open) < MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, and remember the connection."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget and end a connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """End everything. `serve_forever` must have returned, or never been called."""
        self.studio.boards.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # it ended by itself
                    continue
        self.server_close()
