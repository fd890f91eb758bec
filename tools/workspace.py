"""Rules that keep the workspace one: run as `python -m tools.workspace`; every broken rule is one line."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Member", "breaches", "main", "members", "warnings"]

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FILE_LINES_ASK = 600, 400
FUNCTION_LINES, FUNCTION_LINES_ASK = 60, 40
PARAMETERS_ASK = 8
VAGUE = {"utils", "helpers", "common", "base", "manager", "core"}
# A path of one machine or the address of a registry; uv.lock is the only file that may hold one.
FOREIGN = re.compile(
    r"(?<![\w./~-])/(?:work|home|Users|root)/\w"
    r"|\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch\.org|deb\.debian\.org)"
    r"|index-url\s*=|\[\[tool\.uv\.index\]\]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One member of the workspace: its folder and what its pyproject.toml says."""

    path: Path
    pyproject: dict[str, Any]

    @property
    def name(self) -> str:
        return self.pyproject["project"]["name"]

    @property
    def version(self) -> str:
        return self.pyproject["project"]["version"]

    @property
    def runtime(self) -> list[Requirement]:
        """Requirements of the package and of its extras."""
        project = self.pyproject["project"]
        extras = project.get("optional-dependencies", {}).values()
        lines = [*project.get("dependencies", ()), *(line for extra in extras for line in extra)]
        return [Requirement(line) for line in lines]

    @property
    def groups(self) -> list[Requirement]:
        """Requirements of its dependency groups."""
        groups = self.pyproject.get("dependency-groups", {}).values()
        return [Requirement(line) for group in groups for line in group if isinstance(line, str)]


def members(root: Path = ROOT) -> list[Member]:
    """The members that the root's pyproject.toml lists."""
    paths = load(root / "pyproject.toml")["tool"]["uv"]["workspace"]["members"]
    return [Member(path=root / path, pyproject=load(root / path / "pyproject.toml")) for path in paths]


def load(path: Path) -> dict[str, Any]:
    """Read one TOML file."""
    return tomllib.loads(path.read_text())


def sibling_breaches(all_members: Iterable[Member]) -> Iterator[str]:
    """Siblings need a floor, a ceiling and a range that holds their version; groups bring in no new sibling."""
    versions = {canonicalize_name(member.name): member.version for member in all_members}
    for member in all_members:
        needed = {canonicalize_name(need.name) for need in member.runtime}
        for need in (*member.runtime, *member.groups):
            sibling = canonicalize_name(need.name)
            if sibling not in versions or sibling == canonicalize_name(member.name):  # an extra may name another
                continue
            operators = {spec.operator for spec in need.specifier}
            if not operators >= {">=", "<"}:
                yield f"{member.name}: {need} needs a floor and a ceiling, such as {sibling}>=0.1,<0.2"
            elif not need.specifier.contains(versions[sibling], prereleases=True):
                yield f"{member.name}: {need} does not admit {sibling} {versions[sibling]}; raise its range"
            if sibling not in needed:
                yield f"{member.name}: a dependency group names {sibling}, which the package does not depend on"


def root_breaches(root: Path, all_members: Iterable[Member]) -> Iterator[str]:
    """The root is virtual, knows every member as a source and every module to the import contracts."""
    settings = load(root / "pyproject.toml")
    if "project" in settings:
        yield "pyproject.toml: the root has a [project] table; it must stay virtual"
    pythons = {member.pyproject["project"].get("requires-python") for member in all_members}
    if len(pythons) > 1:
        yield f"requires-python differs between members: {', '.join(sorted(map(str, pythons)))}"
    sources = settings["tool"]["uv"].get("sources", {})
    watched = settings["tool"].get("importlinter", {}).get("root_packages", ())
    for member in all_members:
        if sources.get(member.name) != {"workspace": True}:
            yield f"pyproject.toml: tool.uv.sources lacks {member.name} = {{ workspace = true }}"
        for module in (member.path / "src").glob("*/__init__.py"):
            if module.parent.name not in watched:
                yield f"pyproject.toml: tool.importlinter.root_packages lacks {module.parent.name}"


def form_breaches(member: Member) -> Iterator[str]:
    """Every member has a README, a changelog with a folder for news, one package with py.typed, and flat tests."""
    for name in ("README.md", "CHANGELOG.md", "changelog.d"):
        if not (member.path / name).exists():
            yield f"{member.name}: {name} is missing"
    packages = list((member.path / "src").glob("*/__init__.py"))
    if len(packages) != 1:
        yield f"{member.name}: src holds {len(packages)} packages; one is the rule"
    for package in packages:
        if not (package.parent / "py.typed").exists():
            yield f"{member.name}: {package.parent.name}/py.typed is missing"
    if list((member.path / "tests").rglob("__init__.py")):
        yield f"{member.name}: tests hold an __init__.py; equal names would collide"


def module_breaches(path: Path, name: str) -> Iterator[str]:
    """One Python file: a plain name, the budgets, `__all__` where it is part of a package."""
    if path.stem in VAGUE:
        yield f"{name}: {path.stem} says nothing; name the module after what it holds"
    text = path.read_text()
    lines = text.count("\n")
    if lines > FILE_LINES:
        yield f"{name}: {lines} lines; the limit is {FILE_LINES}"
    tree = ast.parse(text)
    for node, length in functions(tree):
        if length > FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {length} lines; the limit is {FUNCTION_LINES}"
    if "src" in path.parts and path.name != "__main__.py" and "__all__" not in assigned(tree):
        yield f"{name}: __all__ is missing"


def module_warnings(path: Path, name: str) -> Iterator[str]:
    """Sizes that ask for a second look."""
    text = path.read_text()
    lines = text.count("\n")
    if FILE_LINES_ASK < lines <= FILE_LINES:
        yield f"{name}: {lines} lines; aim under {FILE_LINES_ASK}"
    for node, length in functions(ast.parse(text)):
        if FUNCTION_LINES_ASK < length <= FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {length} lines; aim under {FUNCTION_LINES_ASK}"
        count = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
        if count > PARAMETERS_ASK:
            yield f"{name}:{node.lineno}: {node.name} has {count} parameters; aim at {PARAMETERS_ASK}"


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Functions and methods with their number of lines, decorators left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def assigned(tree: ast.Module) -> set[str]:
    """Names that a module assigns at its top level."""
    targets = [
        target
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def text_breaches(path: Path, name: str) -> Iterator[str]:
    """No path of one machine and no address of a package registry in a file of the project."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if found := FOREIGN.search(line):
            yield f"{name}:{number}: {found.group()} belongs to one machine or registry, not to the project"


def files(root: Path) -> list[Path]:
    """Files of the project: tracked, or new and not ignored."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def breaches(root: Path = ROOT) -> list[str]:
    """Every broken rule of the workspace, one sentence each."""
    everyone = members(root)
    found = [*root_breaches(root, everyone), *sibling_breaches(everyone)]
    for member in everyone:
        found += form_breaches(member)
    for path in files(root):
        name = str(path.relative_to(root))
        if path.suffix == ".py":
            found += module_breaches(path, name)
        if path.name not in ("uv.lock", "workspace.py", "test_workspace.py"):
            found += text_breaches(path, name)
    return found


def warnings(root: Path = ROOT) -> list[str]:
    """What is allowed but asks for a second look, one sentence each."""
    paths = [path for path in files(root) if path.suffix == ".py"]
    return [line for path in paths for line in module_warnings(path, str(path.relative_to(root)))]


def main() -> int:
    """Print breaches and warnings; breaches decide the exit status."""
    found = breaches()
    for line in warnings():
        print(f"warning: {line}")
    for line in found:
        print(f"error: {line}")
    print(f"{len(found)} broken rules")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
