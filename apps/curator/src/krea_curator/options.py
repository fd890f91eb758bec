"""Flags that many commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["HOME", "Dsns", "HomeFlag", "read_dsns"]

HOME = Path("runs/curation")


def read_dsns(given: list[str] | None) -> list[str] | None:
    """The DSNs, where @FILE stands for the lines of a file: secrets stay out of the list of processes."""
    if given is None:
        return None
    found: list[str] = []
    for one in given:
        if not one.startswith("@"):
            found.append(one)
            continue
        try:
            lines = Path(one[1:]).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{one[1:]} cannot be read: {error}") from error
        found += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return found


HomeFlag = Annotated[Path, typer.Option("--home", help="Folder of this curation: pictures, database, recipe.json.")]
Dsns = Annotated[
    list[str] | None,
    typer.Option(
        "--dsn",
        callback=read_dsns,
        help="A shard of a PostgreSQL cluster, in order, or @FILE with one a line; may be repeated."
        " Without it, an embedded one.",
    ),
]
