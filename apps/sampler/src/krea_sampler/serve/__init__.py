"""`krea-sample serve`: a page in the browser for finding a picture, with one thread that draws behind it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from krea_sampler import picture
from krea_sampler.compose import Artist, Setup
from krea_sampler.safety import Safety
from krea_sampler.serve.boards import Boards
from krea_sampler.serve.engine import Engine
from krea_sampler.serve.kept import find
from krea_sampler.serve.server import Server
from krea_sampler.serve.web import Studio
from krea_sampler.serve.worker import work

__all__ = ["address", "listening", "serve"]


@contextmanager
def listening(
    artist: Artist,
    setup: Setup,
    out: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    safety: Safety | None = None,
) -> Iterator[Server]:
    """A server that is bound, with its thread that draws; `serve_forever` answers, and leaving ends all of it.

    setup: what the artist was made from. out: the folder of kept pictures. port: 0 is any that is free.
    Raises ValueError if the folder cannot be written to or the port cannot be had.
    """
    picture.check_writable(out)
    engine = Engine(artist, safety)
    boards = Boards(find(out, engine))
    studio = Studio(engine=engine, setup=setup, boards=boards, out=out, names=frozenset({host.lower()}))
    try:
        server = Server((host, port), studio)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"cannot listen at {host} port {port} ({reason}); use another --port (0 is any) or --host"
        ) from error
    worker = threading.Thread(target=work, args=(boards, engine), name="drawing", daemon=True)
    worker.start()
    try:
        yield server
    finally:
        server.close()
        worker.join()


def serve(server: Server, say: Callable[[str], None]) -> None:
    """Answer until Ctrl-C; `say` is told that it was understood."""
    # in a thread of its own: in the middle of taking a connection Ctrl-C would leave a thread that never began
    answering = threading.Thread(target=server.serve_forever, name="answering", daemon=True)
    answering.start()
    try:
        while answering.is_alive():
            answering.join(0.5)  # a wait without an end cannot be interrupted everywhere
    except KeyboardInterrupt:
        say("stopping after the current step; Ctrl-C again leaves at once")
        server.shutdown()


def address(server: Server) -> str:
    """Where this machine's browser finds the page."""
    host, port = server.server_address[:2]
    name = str(host)
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"
