"""A reader in a thread of the test's process, or in one of its own: python reading.py ADDRESS DSN ..."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from krea_data.krablet.readers.process import Reader, reading, run_reader
from krea_data.krablet.rpc import Tokens
from krea_data.krablet.rpc.loop import new_loop


@contextmanager
def a_reader(
    dsns: Sequence[str], address: str, tokens: Tokens | None = None, **options: Any
) -> Iterator[tuple[Reader, Callable[[], None]]]:
    """A reader that listens here, and a function that drains it before the end."""
    ready: Future[Reader] = Future()
    loop = new_loop()
    stop = asyncio.Event()

    async def main() -> None:
        try:
            async with reading(dsns, address, tokens, **options) as reader:
                ready.set_result(reader)
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()

    try:
        yield ready.result(30), end
    finally:
        end()


if __name__ == "__main__":
    run_reader(
        sys.argv[2:],
        sys.argv[1],
        None,
        drain_s=10.0,
        on_ready=lambda reader: print(reader.address, flush=True),  # noqa: T201 - the test reads it
    )
