"""Who may do what: named secrets with scopes, kept as hashes in a JSON file that only its owner and group may read."""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SCOPES", "Caller", "Tokens"]

SCOPES = frozenset({"read", "write", "work", "map", "admin"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a connection."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the caller has this scope; admin has all."""
        return scope in self.scopes or "admin" in self.scopes


class Tokens:
    """The tokens of a file. A running server sees what is added or removed, from the next connection on."""

    def __init__(self, path: Path, known: dict[str, tuple[str, frozenset[str]]]) -> None:
        self.path = path
        self._known = known  # name: (sha256 of the secret, scopes)
        self._stamp = _stamp(path)

    @classmethod
    def load(cls, path: Path | str) -> "Tokens":
        """The tokens of the file, none if it is not there yet; ValueError if others may read it or it holds none."""
        path = Path(path)
        return cls(path, _read(path))

    @property
    def names(self) -> list[str]:
        """Who has a token, in order."""
        return sorted(self._known)

    def add(self, name: str, scopes: Iterable[str]) -> str:
        """Make a token and return its secret, which is kept nowhere; ValueError for a bad or taken name or scope."""
        wanted = frozenset(scopes)
        if not _NAME.fullmatch(name):
            raise ValueError(f"a token's name {name!r} is not 1 to 64 letters, digits and ._@-")
        if not wanted or not wanted <= SCOPES:
            raise ValueError(f"scopes {sorted(wanted)} are not some of {sorted(SCOPES)}")
        known = _read(self.path)
        if name in known:
            raise ValueError(f"there is a token {name!r} already; remove it first")
        secret = secrets.token_urlsafe(32)
        self._store({**known, name: (_digest(secret), wanted)})
        return secret

    def remove(self, name: str) -> None:
        """Forget a token, or LookupError."""
        known = _read(self.path)
        if name not in known:
            raise LookupError(f"there is no token {name!r}; known are {sorted(known)}")
        self._store({other: token for other, token in known.items() if other != name})

    def check(self, secret: str) -> Caller | None:
        """Whose secret this is, in the same time whether and whose it is."""
        self._refresh()
        digest = _digest(secret)
        found: Caller | None = None
        for name, (known, scopes) in self._known.items():
            if hmac.compare_digest(known, digest):
                found = Caller(name, scopes)
        return found

    def _refresh(self) -> None:
        stamp = _stamp(self.path)
        if stamp != self._stamp:
            self._known, self._stamp = _read(self.path), stamp

    def _store(self, known: dict[str, tuple[str, frozenset[str]]]) -> None:
        document = {name: {"sha256": digest, "scopes": sorted(scopes)} for name, (digest, scopes) in known.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"tokens": document}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        self._known, self._stamp = known, _stamp(self.path)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    try:
        with path.open() as file:
            _check_private(path, os.fstat(file.fileno()))
            text = file.read()
    except FileNotFoundError:
        return {}
    try:
        tokens: dict[str, Any] = json.loads(text)["tokens"]
        return {name: (str(token["sha256"]), frozenset(map(str, token["scopes"]))) for name, token in tokens.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no tokens: {error}; make it by adding a token") from error


def _check_private(path: Path, found: os.stat_result) -> None:
    """ValueError where strangers may read the file, or anybody but its owner may write it.

    A group may read the file of root, or ours: so Kubernetes mounts the secrets of a pod with an fsGroup.
    """
    trusted = found.st_uid in (0, os.geteuid())
    if found.st_mode & (0o037 if trusted else 0o077):
        raise ValueError(
            f"others may read the tokens in {path}, or change them; run chmod 600 on it, or 640 for its group"
        )
