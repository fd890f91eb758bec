"""Everything a person or CI runs: `nox` for all default sessions, `nox -s tests` for one kind, `nox -l` for the list.

The versions are those of uv.lock. Set KREA_TORCH to a requirement such as `torch==X.Y.Z+cpu` (the exact local
version) to put another build of torch in place of the locked one.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PACKAGES = {p.name: p.relative_to(ROOT) for p in sorted(ROOT.glob("packages/krea-*"))}
APPS = {"krea-curate": Path("apps/curator"), "krea-launch": Path("apps/launcher"), "krea-sample": Path("apps/sampler")}
MEMBERS = PACKAGES | APPS
MODULES = {name: next((ROOT / path).glob("src/*/__init__.py")).parent.name for name, path in MEMBERS.items()}

# Everything except what must be compiled against a CUDA toolkit.
EVERYTHING = (*(f"--package={member}" for member in MEMBERS), "--all-extras", "--no-extra=cuda")
# A test that hangs for ten minutes is shown with its traceback and ends its run.
PYTEST = ("pytest", "-o", "faulthandler_timeout=600", "-o", "faulthandler_exit_on_timeout=true", f"--rootdir={ROOT}")
# Tests of krea-model that reach transformers, straight or through diffusers.
TRANSFORMERS = ("text*", "t5", "export", "pipeline*", "hub", "autoencoder", "flux_autoencoder", "parity")
TORCH = os.environ.get("KREA_TORCH")
PYTHON = None if sys.version_info >= (3, 11) else "3.11"


def find_uv() -> str:
    """The uv that started nox, or the one on PATH, or the one of this Python."""
    found = os.environ.get("UV") or shutil.which("uv")
    if found:
        return found
    try:
        from uv import find_uv_bin
    except ImportError as error:
        raise RuntimeError("uv is not to be found; `pip install uv` and start with `uvx nox`") from error
    return find_uv_bin()


UV = find_uv()


def python_of(venv: Path) -> str:
    """The interpreter inside a virtual environment."""
    return str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def home_of(session: nox.Session) -> Path:
    """The virtual environment of a session."""
    return ROOT / session.virtualenv.location


def export(session: nox.Session, *select: str) -> str:
    """What uv.lock says about a selection, in the format of a requirements file."""
    plain = ("--locked", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-default-groups")
    text = session.run_install(UV, "export", *plain, *select, external=True, silent=True)
    return text if isinstance(text, str) else ""


def install(session: nox.Session, *select: str, venv: str = "") -> None:
    """Install exactly what is selected, at the versions in uv.lock."""
    home = ROOT / venv if venv else home_of(session)
    python = f"--python={python_of(home)}"
    if TORCH is None:
        sync = (UV, "sync", "--locked", "--active", python, "--no-default-groups", *select)
        session.run_install(*sync, env={"VIRTUAL_ENV": str(home)}, external=True)
        return
    wanted = [TORCH] if re.search(r"^torch==", export(session, *select), re.M) else []
    tmp = ROOT / session.create_tmp()
    (tmp / "select.txt").write_text(export(session, *select, "--prune=torch"))
    every = ("--all-packages", "--all-extras", "--all-groups", "--no-emit-workspace", "--no-emit-package=torch")
    (tmp / "pins.txt").write_text(export(session, *every))
    files = (f"-r={tmp}/select.txt", f"-c={tmp}/pins.txt")
    session.run_install(UV, "pip", "install", python, *files, *wanted, external=True)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Check format, style, the rules of the workspace and that uv.lock is up to date."""
    install(session, "--only-group=lint")
    session.run(UV, "lock", "--check", external=True)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("python", "-m", "tools.workspace")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Check the types of all members with everything installed."""
    install(session, *EVERYTHING, "--all-groups")
    session.run("basedpyright")


@nox.session(python=PYTHON)
def imports(session: nox.Session) -> None:
    """Check that packages import only lower ones, and torch only where it may be."""
    install(session, "--only-group=imports")
    sources = os.pathsep.join(str(ROOT / path / "src") for path in MEMBERS.values())
    session.run("lint-imports", env={"PYTHONPATH": sources})


@nox.session(python=PYTHON)
@nox.parametrize("member", list(MEMBERS), ids=list(MEMBERS))
def tests(session: nox.Session, member: str) -> None:
    """Test one member with only the dependencies it declares."""
    install(session, f"--package={member}", "--group=test")
    session.run(*PYTEST, str(MEMBERS[member]), *session.posargs)


@nox.session(python=PYTHON)
def contracts(session: nox.Session) -> None:
    """With everything installed, check that the packages fit each other."""
    install(session, *EVERYTHING, "--group=contracts")
    session.run(UV, "pip", "check", f"--python={python_of(home_of(session))}", external=True)
    session.run(*PYTEST, "tests", "--ignore=tests/test_docs.py", *session.posargs)


@nox.session(python=PYTHON, reuse_venv=False)
def wheels(session: nox.Session) -> None:
    """Build all members and import each from its wheel, far from the workspace."""
    tmp = ROOT / session.create_tmp()
    dist = tmp / "dist"
    session.run(UV, "build", "--all-packages", "--no-sources", "--clear", f"--out-dir={dist}", "--quiet", external=True)
    built = {name: next(dist.glob(f"{name.replace('-', '_')}-*.whl")) for name in MEMBERS}
    ours = "".join(f"{name} @ {wheel.as_uri()}\n" for name, wheel in built.items())
    (tmp / "pins.txt").write_text(ours + export(session, "--all-packages", "--all-extras", "--no-emit-workspace"))
    python, venv = f"--python={python_of(home_of(session))}", tmp / "venv"
    for name, wheel in built.items():
        session.run(UV, "venv", "--quiet", "--clear", python, str(venv), external=True)
        options = ("--no-config", "--quiet", f"--python={python_of(venv)}", f"--constraints={tmp}/pins.txt")
        session.run(UV, "pip", "install", *options, f"{name} @ {wheel.as_uri()}", external=True)
        session.run(python_of(venv), "-I", "-W", "error", "-c", f"import {MODULES[name]}", external=True)
        if name in APPS:
            session.run(str(Path(python_of(venv)).with_name(name)), "--help", external=True, silent=True)
    shutil.rmtree(tmp / "venv")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """Build the documentation strictly and run every example in it and in the READMEs."""
    install(session, *EVERYTHING, "--group=docs")
    session.run("properdocs", "build", "--strict", f"--site-dir={ROOT}/site")
    session.run(*PYTEST, "tests/test_docs.py", *session.posargs)


@nox.session(python=PYTHON, default=False)
def slow(session: nox.Session) -> None:
    """Run the tests that are too slow for every change."""
    install(session, *EVERYTHING, "--all-groups")
    session.run(*PYTEST, "-m", "slow", *session.posargs)


@nox.session(python=PYTHON, default=False)
def chaos(session: nox.Session) -> None:
    """Kill servers, funnels, readers and workers of a krablet for minutes, and count what is left."""
    install(session, "--package=krea-data", "--group=test")
    session.run(*PYTEST, "-m", "chaos", str(MEMBERS["krea-data"]), *session.posargs)


@nox.session(python=PYTHON, default=False)
def network(session: nox.Session) -> None:
    """Run the tests that fetch packages from their registries."""
    install(session, *EVERYTHING, "--all-groups")
    session.run(*PYTEST, "-m", "network", *session.posargs)


@nox.session(python=PYTHON, default=False, reuse_venv=False)
@nox.parametrize("package", list(PACKAGES), ids=list(PACKAGES))
def lowest(session: nox.Session, package: str) -> None:
    """Test one package on the oldest versions it claims to accept."""
    path = PACKAGES[package]
    torch = [TORCH] if TORCH and "torch" in (path / "pyproject.toml").read_text() else []
    group = f"--group={path}/pyproject.toml:test"
    session.run_install(
        *(UV, "pip", "install", f"--python={python_of(home_of(session))}", "--resolution=lowest-direct"),
        *(f"--editable=./{path}", group, *torch),
        external=True,
    )
    session.run("pytest", f"--rootdir={ROOT}", str(path), *session.posargs)


@nox.session(python=PYTHON, default=False, reuse_venv=False)
def transformers4(session: nox.Session) -> None:
    """Test what uses transformers on 4.57, with the oldest of all else that krea-model accepts but the locked torch."""
    path = PACKAGES["krea-model"]
    torch = TORCH or next(re.finditer(r"^torch==\S+", export(session, "--package=krea-model"), re.M))[0]
    session.run_install(
        *(UV, "pip", "install", f"--python={python_of(home_of(session))}", "--resolution=lowest-direct"),
        *(f"--editable=./{path}[text,vae]", f"--group={path}/pyproject.toml:test", "transformers==4.57.*", torch),
        external=True,
    )
    files = sorted({str(file) for kind in TRANSFORMERS for file in (path / "tests").glob(f"test_{kind}.py")})
    session.run(*PYTEST, *files, *session.posargs)


@nox.session(python=PYTHON, default=False)
def api(session: nox.Session) -> None:
    """Say what changed in the public names of each package since its last tag."""
    install(session, "--only-group=release")
    for name in session.posargs or PACKAGES:
        tags = session.run("git", "tag", "--list", f"{name}-v*", "--sort=-v:refname", external=True, silent=True)
        if not tags:
            session.log(f"{name} has no release yet")
            continue
        against = tags.split()[0]
        session.run("griffecli", "check", MODULES[name], f"--search={MEMBERS[name]}/src", f"--against={against}")


@nox.session(python=PYTHON, default=False)
def kernels(session: nox.Session) -> None:
    """On a machine with a GPU: the tests that need it, then the comparison of speeds."""
    install(session, *EVERYTHING, "--all-groups")
    session.run("pytest", "-m", "gpu", "packages", "tests", success_codes=[0, 5])
    session.run("python", "tools/gpu_check.py", *session.posargs)


@nox.session(python=PYTHON, default=False)
def release(session: nox.Session) -> None:
    """`nox -s release -- krea-model`: plan, build, queue the gates; the upload is yours (docs/releasing.md)."""
    if not session.posargs:
        session.error("name what to release, such as: nox -s release -- krea-model")
    install(session, "--only-group=release")
    session.run("python", "-m", "tools.release", "plan", *session.posargs)
    session.run("python", "-m", "tools.release", "build", *session.posargs)
    for gate in ("contracts", "wheels", "docs"):
        session.notify(gate, [])
    session.notify("api", session.posargs)
    for name in session.posargs:
        session.notify(f"tests({name})", [])
        if name in PACKAGES:
            session.notify(f"lowest({name})", [])


@nox.session(python=PYTHON, default=False, venv_backend="none")
def dev(session: nox.Session) -> None:
    """Make .venv for work on everything, on the torch of KREA_TORCH if that is set."""
    session.run_install(UV, "venv", "--allow-existing", ".venv", external=True)
    install(session, *EVERYTHING, "--group=dev", venv=".venv")
