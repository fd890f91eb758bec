"""A folder for the servers' sockets: its path has to be short, and nobody else may enter it."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from krea_data.krablet.embedded.binaries import Account
from krea_data.krablet.errors import ServerError

__all__ = ["socket_folder"]

_LONGEST = 107 - len("/.s.PGSQL.00000.lock")  # the kernel's limit for a socket's path, less the file's name


def socket_folder(root: Path, user: Account) -> Path:
    """A private folder for the sockets of the cluster in `root`, the same every time unless somebody took its name."""
    mark = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR") if user.own else None
    places = [Path(place) for place in (runtime, tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm") if place]
    for place in places:
        for suffix in ("", "-1", "-2", "-3"):
            folder = place / f"krablet-{mark}{suffix}"
            if len(os.fsencode(folder)) <= _LONGEST and _private(folder, user):
                return folder
    raise ServerError(
        f"no place for sockets in {', '.join(map(str, places))}; set TMPDIR to a short path that is writable"
    )


def _private(folder: Path, user: Account) -> bool:
    """Make the folder, or see that it is there, the account's, and closed to all others."""
    try:
        folder.mkdir(mode=0o700)
        if not user.own:
            os.chown(folder, user.uid, user.gid)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == user.uid and not found.st_mode & 0o077
