"""What a browser asks for, as JSON, into a board; raises ValueError with one sentence for the page."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from krea_sampler.explore import Mixture, between, neighbours
from krea_sampler.heard import shortened
from krea_sampler.record import parsed
from krea_sampler.serve.boards import Board, Boards, Tile
from krea_sampler.serve.engine import Engine, Settings

__all__ = ["MAX_COUNT", "board", "opened"]

MAX_COUNT = 24  # pictures of one board
SETTINGS = ("steps", "guidance", "width_px", "height_px", "negative")
NEW_SEEDS = 1_000_000  # short enough to be read out


def board(ask: object, engine: Engine, boards: Boards) -> Board:
    """The board that `ask` describes; its `kind` says which other fields it has (see the functions below)."""
    kinds: dict[str, tuple[set[str], Callable[[Mapping[str, Any], Engine, Boards], Board]]] = {
        "draw": ({"prompt", "seed", "count"}, _draw),
        "more": ({"of", "distance", "seed", "count"}, _more),
        "between": ({"of", "to", "count"}, _between),
        "toward": ({"of", "prompt", "count"}, _toward),
        "repeat": ({"of", "parameters"}, _repeat),
    }
    if not isinstance(ask, dict):
        raise ValueError("an ask that is no JSON object; send one with a kind")
    kind = ask.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"an ask of kind {shortened(repr(kind), 40)}; use one of {', '.join(kinds)}")
    allowed, make = kinds[kind]
    strange = sorted(set(ask) - allowed - {"kind", *SETTINGS})
    if strange:
        raise ValueError(
            f"{kind} knows no {shortened(repr(strange[0]), 40)}; it takes {', '.join(sorted(allowed | set(SETTINGS)))}"
        )
    return make(ask, engine, boards)


def opened(parameters: Mapping[str, Any], engine: Engine) -> Tile:
    """The tile that draws a picture with these parameters again."""
    mixture, settings = engine.recipe(parameters)
    origin = parameters.get("origin")
    return Tile(mixture=mixture, settings=settings, caption="", origin=origin if isinstance(origin, dict) else {})


def _draw(ask: Mapping[str, Any], engine: Engine, _: Boards) -> Board:
    """`count` pictures of a prompt, of seeds `seed`, `seed` + 1 and so on; without one, of new seeds."""
    prompt, count, first = _text(ask, "prompt"), _count(ask), _seed(ask)
    settings = engine.settle(**_given(ask))
    first = secrets.randbelow(NEW_SEEDS) if first is None else first
    seeds = range(first, first + count)
    tiles = [Tile(mixture=Mixture.pure(prompt, one), settings=settings, caption=f"seed {one}") for one in seeds]
    return Board(kind="draw", title=prompt, tiles=tiles)


def _more(ask: Mapping[str, Any], engine: Engine, boards: Boards) -> Board:
    """A picture and `count` - 1 neighbours of it at `distance`."""
    tile = _tile(ask, "of", boards)
    distance, count, seed = _number(ask, "distance"), _count(ask, 2), _seed(ask)
    seed = secrets.randbelow(NEW_SEEDS) if seed is None else seed
    found = neighbours(tile.mixture, distance, count - 1, seed)
    origin = {"kind": "more", "parents": [tile.mixture.record()], "distance": distance, "seed": seed}
    settings = _settings(ask, engine, tile)
    tiles = [Tile(mixture=tile.mixture, settings=settings, caption="picked", origin=tile.origin)]
    for row, one in enumerate(found):
        tiles.append(Tile(mixture=one, settings=settings, caption="", origin=origin | {"row": row}))
    return Board(kind="more", title=tile.mixture.leading_prompt, tiles=tiles, parents=(_place(ask, "of"),))


def _between(ask: Mapping[str, Any], engine: Engine, boards: Boards) -> Board:
    """`count` pictures from one (`of`) to another (`to`), both included."""
    a, b = _tile(ask, "of", boards), _tile(ask, "to", boards)
    if a.mixture == b.mixture:
        raise ValueError("there is nothing between a picture and itself; pick another one")
    return Board(
        kind="between",
        title=" to ".join(dict.fromkeys([a.mixture.leading_prompt, b.mixture.leading_prompt])),
        tiles=_way(a, b.mixture, "between", _count(ask, 2), _settings(ask, engine, a), b.origin),
        parents=(_place(ask, "of"), _place(ask, "to")),
    )


def _toward(ask: Mapping[str, Any], engine: Engine, boards: Boards) -> Board:
    """`count` pictures of the same noise, from a picture's prompt to another `prompt`."""
    tile = _tile(ask, "of", boards)
    mixture, prompt = tile.mixture, _text(ask, "prompt")
    end = Mixture(seeds=mixture.seeds, seed_weights=mixture.seed_weights, prompts=(prompt,), prompt_weights=(1.0,))
    if end == mixture:
        raise ValueError("these are already the words of the picture; say something else to go toward")
    return Board(
        kind="toward",
        title=f"{mixture.leading_prompt} to {prompt}",
        tiles=_way(tile, end, "toward", _count(ask, 2), _settings(ask, engine, tile), {}),
        parents=(_place(ask, "of"),),
    )


def _repeat(ask: Mapping[str, Any], engine: Engine, boards: Boards) -> Board:
    """One picture again: `of` the boards with other settings, or of the `parameters` in a PNG, as their text."""
    if "of" in ask:
        tile = _tile(ask, "of", boards)
        again = Tile(mixture=tile.mixture, settings=_settings(ask, engine, tile), caption="again", origin=tile.origin)
        return Board(kind="repeat", title=tile.mixture.leading_prompt, tiles=[again], parents=(_place(ask, "of"),))
    text = _text(ask, "parameters")
    try:
        parameters = parsed(text)
    except ValueError as error:
        raise ValueError(f"the parameters in this picture are damaged: {error}") from error
    tile = opened(parameters, engine)
    return Board(kind="repeat", title=tile.mixture.leading_prompt, tiles=[tile])


def _way(a: Tile, b: Mixture, kind: str, count: int, settings: Settings, last: Mapping[str, Any]) -> list[Tile]:
    """Tiles from one to another; the ends, of which `last` is the second's origin, stay what they are."""
    found = between(a.mixture, b, count)
    parents = [a.mixture.record(), b.record()]
    tiles = []
    for i, one in enumerate(found):
        position = i / (count - 1)
        origin = {"kind": kind, "parents": parents, "position": position}
        origin = a.origin if i == 0 else last if one == b else origin
        tiles.append(Tile(mixture=one, settings=settings, caption=f"{round(position * 100)} %", origin=origin))
    return tiles


def _settings(ask: Mapping[str, Any], engine: Engine, tile: Tile) -> Settings:
    """Those of the tile, changed where the ask gives others."""
    given = {name: value for name, value in _given(ask).items() if value is not None}
    return engine.settle(**(asdict(tile.settings) | given))


def _given(ask: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ask.get(name) for name in SETTINGS}


def _text(ask: Mapping[str, Any], name: str) -> str:
    found = ask.get(name)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f'an empty {name}; say what to draw, such as "a red apple, flat style"')
    return found.strip()


def _number(ask: Mapping[str, Any], name: str) -> float:
    found = ask.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) > 1e9:
        raise ValueError(f"{name} {str(found)[:40]!r}; it must be a number")
    return float(found)


def _count(ask: Mapping[str, Any], least: int = 1) -> int:
    found = ask.get("count")
    if type(found) is not int or not least <= found <= MAX_COUNT:
        raise ValueError(f"a board of {str(found)[:40]!r} pictures; use a whole number from {least} to {MAX_COUNT}")
    return found


def _seed(ask: Mapping[str, Any]) -> int | None:
    """A seed as a number or as digits: a script of a page cannot hold large whole numbers."""
    found = ask.get("seed")
    if found is None or found == "":
        return None
    digits = str(found) if type(found) in (int, str) else ""
    if not (digits.isascii() and digits.isdigit() and int(digits[:20]) < 2**63 - MAX_COUNT):
        raise ValueError(f"seed {str(found)[:40]!r}; use a whole number from 0 to 2^63 - {MAX_COUNT + 1}")
    return int(digits)


def _tile(ask: Mapping[str, Any], name: str, boards: Boards) -> Tile:
    place = ask.get(name)
    if isinstance(place, dict) and isinstance(place.get("board"), str) and type(place.get("tile")) is int:
        try:
            board = boards.get(place["board"])
        except KeyError:
            raise ValueError("that picture is gone from the server's memory; open its PNG, or draw it again") from None
        if 0 <= place["tile"] < len(board.tiles):
            return board.tiles[place["tile"]]
    raise ValueError(f"no picture in {name!r}; pick one of a board")


def _place(ask: Mapping[str, Any], name: str) -> tuple[str, int]:
    return ask[name]["board"], ask[name]["tile"]
