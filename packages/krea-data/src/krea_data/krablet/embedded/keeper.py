"""The one process that starts and stops the servers of a folder: `python -m krea_data.krablet.embedded.keeper ROOT N`.

It starts what is not running, also shards that are added while it runs, starts again what died, and ends with the last
user of the folder, even if that user was killed. A server that does not start is given up, unless the disk became full
while it was in use or somebody ends it each time: then it is tried again, after ever longer pauses.

The keeper is started by `server.up`, leaves the terminal and goes on in the background; if it is killed itself, the
servers go on, and the next keeper takes them over.
"""

import contextlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from krea_data.krablet.embedded.binaries import account, programs, reachable
from krea_data.krablet.embedded.folder import FIRST_PORT, Folder, Hold, explained
from krea_data.krablet.embedded.postmaster import Postmaster
from krea_data.krablet.embedded.sockets import socket_folder
from krea_data.krablet.errors import ServerError

__all__ = ["main"]

_POLL_S = 0.1


def main(arguments: list[str]) -> int:
    """Keep the servers of a folder; returns when this process has no more to do, with 1 and a sentence on stderr."""
    folder, shards = Folder(Path(arguments[0])), int(arguments[1])
    try:
        with explained(folder.root):
            mine = folder.keep()
            if mine is None:
                return 0  # there is a keeper
            servers = prepare(folder, shards)
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if os.fork():
        return 0  # the child holds the lock
    os.setsid()
    try:
        with explained(folder.root):  # it may have been deleted under our feet
            keep(folder, servers, mine)
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            folder.error.write_text(f"{error}\n", "utf-8")
        stop(servers)
    return 0


def prepare(folder: Folder, shards: int) -> list[Postmaster]:
    """The servers of the folder, not yet started, and their sockets' place made known."""
    user = account(folder.shard(0))
    if user.own and folder.shard(0).exists() and folder.shard(0).stat().st_uid != user.uid:
        raise ServerError(f"{folder.root} belongs to another user's databases; be that user, or name another folder")
    place = reachable(programs(), user)
    sockets = socket_folder(folder.root, user)
    temporary = folder.sockets.with_suffix(".new")
    temporary.write_text(f"{sockets}\n", "utf-8")
    temporary.replace(folder.sockets)
    return [
        Postmaster(
            data=folder.shard(number),
            log=folder.shard(number).with_suffix(".log"),
            place=place,
            user=user,
            sockets=sockets,
            port=FIRST_PORT + number,
        )
        for number in range(shards)
    ]


def keep(folder: Folder, servers: list[Postmaster], mine: Hold) -> None:
    """Have the servers running while there are users, then stop them; SIGTERM stops them at once."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(Postmaster.ensure, servers))
    told = ""
    while True:
        time.sleep(_POLL_S)
        with folder.gate():  # nobody comes or goes meanwhile
            unused = folder.last()
            if asked or unused is not None:
                stop(servers)
                mine.release()
                return
            if folder.count() > len(servers):
                extend(folder, servers)
        for server in servers:
            server.ensure()
        told = tell(folder, servers, told)


def tell(folder: Folder, servers: list[Postmaster], told: str) -> str:
    """Say once why a server is down for longer, and take it back when it is up; return what is said now."""
    trouble = next((server.trouble for server in servers if server.trouble), "")
    if trouble and not told:
        sys.stderr.write(f"{trouble}\n")
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # the disk may be full
            folder.error.write_text(f"{trouble}\n", "utf-8")
    elif told and not trouble:
        folder.error.unlink(missing_ok=True)
    return trouble


def extend(folder: Folder, servers: list[Postmaster]) -> None:
    """Start the servers of shards that were added; one that cannot be made is taken back, and the others go on."""
    for number in range(len(servers), folder.count()):
        data = folder.shard(number)
        server = replace(servers[0], data=data, log=data.with_suffix(".log"), port=FIRST_PORT + number)
        try:
            server.ensure()
        except (ServerError, OSError) as error:
            folder.write_count(len(servers))
            folder.error.write_text(f"{error}\n", "utf-8")
            return
        servers.append(server)


def stop(servers: list[Postmaster]) -> None:
    """Stop all servers side by side."""
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(Postmaster.stop, servers))
    with contextlib.suppress(OSError):
        servers[0].sockets.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
