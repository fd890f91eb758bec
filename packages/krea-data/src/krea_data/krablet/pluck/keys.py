"""The key by which functions are signed: whoever has it may run code on the workers, so its file is for one user."""

import contextlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

__all__ = ["KEY_FILE", "key_path", "load_key", "make_key"]

KEY_FILE = "KRABLET_KEY_FILE"
"""The environment variable that names the key's file."""
_BYTES = 32


def key_path(dsns: Sequence[str], given: Path | None = None) -> Path:
    """The key's file: the given one, that of the environment, or for local servers one that is made on demand.

    ValueError for servers elsewhere without a key: workers there need the same one.
    """
    if given is not None:
        return Path(given)
    if named := os.environ.get(KEY_FILE):
        return Path(named)
    hosts = [str(conninfo_to_dict(dsn).get("host") or "/") for dsn in dsns]
    if not all(host.startswith(("/", "@")) for host in hosts):
        raise ValueError(
            f"functions for workers of a krablet on other machines are signed; name the file of the key as key_file or"
            f" in {KEY_FILE}, the same on all machines (`python -m krea_data.krablet.pluck FILE` makes one)"
        )
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    path = Path(state) / "krablet" / "pluck.key"
    return make_key(path)


def make_key(path: Path) -> Path:
    """Make a new key in this file, for its owner only, unless there is one; several processes may do so at once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(new, path)  # whole, or not at all
        new.unlink()
    return path


def load_key(path: Path) -> bytes:
    """The key in this file, or ValueError if there is none or if others may read it."""
    try:
        with path.open("rb") as file:
            found, raw = os.fstat(file.fileno()), file.read().strip()
    except OSError as error:
        raise ValueError(f"the key for signed functions cannot be read: {error.strerror} ({path})") from error
    # A volume of Kubernetes belongs to root and is handed to the pod's user through its group.
    mounted = found.st_uid == 0 and os.geteuid() != 0
    if found.st_mode & (0o037 if mounted else 0o077):
        raise ValueError(
            f"the key {path} can be read or written by others (mode {stat.S_IMODE(found.st_mode):04o}); chmod 600 it"
        )
    try:
        key = bytes.fromhex(raw.decode())
    except ValueError:
        key = b""
    if len(key) < _BYTES:
        raise ValueError(f"the key {path} is not {2 * _BYTES} or more hex digits; make a new one")
    return key
