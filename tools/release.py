"""Plan and build releases: `python -m tools.release plan krea-model --part minor`, `... build krea-model`.

Versions are independent. While they are 0.x a new minor version may break its users and a patch may not. Upload is
`uv publish`, in the order that `plan` prints; see docs/releasing.md.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.workspace import Member, members

__all__ = ["affected", "build", "bumped", "graph", "main", "order", "plan"]

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("major", "minor", "patch")


def graph(everyone: Iterable[Member]) -> dict[str, set[str]]:
    """Each member's siblings, through dependencies and extras."""
    found = list(everyone)
    names = {canonicalize_name(member.name) for member in found}
    needs = {member.name: {canonicalize_name(need.name) for need in member.runtime} for member in found}
    return {name: {str(other) for other in others & names} - {name} for name, others in needs.items()}


def order(names: Iterable[str], siblings: Mapping[str, set[str]]) -> list[str]:
    """Those names, dependencies before dependants."""
    wanted = set(names)
    unknown = wanted - siblings.keys()
    if unknown:
        raise ValueError(f"no member is called {', '.join(sorted(unknown))}; the members are {', '.join(siblings)}")
    return [name for name in TopologicalSorter(siblings).static_order() if name in wanted]


def bumped(version: str, part: str) -> str:
    """The next version: bumped("0.3.1", "minor") is "0.4.0"."""
    if part not in PARTS:
        raise ValueError(f"part {part!r} of a version; use one of {', '.join(PARTS)}")
    numbers = [*Version(version).release, 0, 0][:3]
    place = PARTS.index(part)
    return ".".join(str(n) for n in (*numbers[:place], numbers[place] + 1, *(0 for _ in numbers[place + 1 :])))


def affected(name: str, version: str, everyone: Iterable[Member]) -> list[str]:
    """Members whose declared range does not admit `name` at `version`: they need a release of their own."""
    return [
        member.name
        for member in everyone
        if any(
            canonicalize_name(need.name) == canonicalize_name(name) and not need.specifier.contains(version)
            for need in member.runtime
        )
    ]


def plan(name: str, part: str, everyone: Iterable[Member]) -> list[str]:
    """The steps to release one member, as lines: versions in order of publishing, and what is missing."""
    found = {member.name: member for member in everyone}
    siblings = graph(found.values())
    order([name], siblings)
    target = bumped(found[name].version, part)
    dragged = affected(name, target, found.values())
    lines = []
    for each in order([name, *dragged], siblings):
        new = target if each == name else bumped(found[each].version, "patch")
        why = "" if each == name else f" (its range stops short of {name} {target}: raise it)"
        lines.append(f"{each} {found[each].version} -> {new}{why}")
        if not news(found[each]):
            lines.append(f"  {each}: changelog.d holds no fragment; say there what changed")
    return lines


def news(member: Member) -> list[Path]:
    """The changelog fragments that wait for the next release."""
    return sorted((member.path / "changelog.d").glob("*.md"))


def build(names: Iterable[str], everyone: Iterable[Member], out: Path) -> list[str]:
    """Build wheel and source distribution of each name into `out`; returns the names in order of publishing.

    Refuses when the checkout is not clean, ignored files in src included: the build backend ships them.
    """
    found = {member.name: member for member in everyone}
    ordered = order(names, graph(found.values()))
    for name in ordered:
        if stray := dirt(found[name].path):
            raise ValueError(f"{name} has changes or stray files ({stray[0]}); release from a clean checkout")
    clear = ["--clear"]
    for name in ordered:
        command = [os.environ.get("UV", "uv"), "build", f"--package={name}", "--no-sources", f"--out-dir={out}", *clear]
        subprocess.run(command, cwd=ROOT, check=True)
        clear = []
    return ordered


def dirt(path: Path) -> list[str]:
    """What git sees changed, new or ignored under a member, caches aside."""
    command = ["git", "status", "--porcelain", "--ignored", "--", str(path)]
    lines = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "__pycache__" not in line and not line.endswith((".pytest_cache/", ".venv/"))]


def main(arguments: list[str]) -> int:
    """The command line: `plan` or `build`, then names of members."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("command", choices=("plan", "build"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--part", choices=PARTS, default="minor")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "build":
            print("publish in this order:", *build(chosen.names, members(), chosen.out))
        else:
            print(*(line for name in chosen.names for line in plan(name, chosen.part, members())), sep="\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
