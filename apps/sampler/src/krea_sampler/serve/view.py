"""Boards as the JSON that the page shows. Seeds travel as text: a script cannot hold whole numbers above 2^53."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from krea_sampler.compose import Setup
from krea_sampler.order import MAX_GUIDANCE, MAX_SIDE_PX, MAX_STEPS
from krea_sampler.serve.asks import MAX_COUNT
from krea_sampler.serve.boards import Board, Tile
from krea_sampler.serve.engine import Engine
from krea_sampler.serve.kept import command

__all__ = ["about", "board_view", "details"]

SEEDS_SHOWN = 4


def about(engine: Engine, setup: Setup) -> dict[str, Any]:
    """What the page needs to know once: the model's name, its usual settings, limits."""
    return {
        "model": engine.name if setup.model else "the model that ships with krea-sample",
        "defaults": asdict(engine.settle()),
        "limits": {"steps": MAX_STEPS, "guidance": MAX_GUIDANCE, "side_px": MAX_SIDE_PX, "count": MAX_COUNT},
        "unit": engine.unit,
    }


def board_view(board: Board, changed: Sequence[int]) -> dict[str, Any]:
    """A board with those of its tiles that changed."""
    return {
        "id": board.id,
        "kind": board.kind,
        "title": board.title,
        "parents": [list(parent) for parent in board.parents],
        "count": len(board.tiles),
        "tiles": {str(number): _tile(board.tiles[number]) for number in changed},
    }


def details(tile: Tile, setup: Setup) -> dict[str, str]:
    """What is copied with a click; raises ValueError for a picture that is not finished."""
    if tile.parameters is None:
        raise ValueError("this picture is not finished; its parameters come with it")
    return {
        "parameters": json.dumps(tile.parameters, ensure_ascii=False, indent=2),
        "command": command(tile.parameters, tile.stem, setup),
        "name": f"{tile.stem}.png",
    }


def _tile(tile: Tile) -> dict[str, Any]:
    mixture = tile.mixture
    seeds = sorted(zip(mixture.seeds, mixture.seed_weights, strict=True), key=lambda one: -one[1])
    return {
        "state": tile.state,
        "step": tile.step,
        "steps": tile.settings.steps,
        "guidance": tile.settings.guidance,
        "width_px": tile.settings.width_px,
        "height_px": tile.settings.height_px,
        "negative": tile.settings.negative,
        "caption": tile.caption,
        "preview": tile.preview,
        "error": tile.error,
        "kept": tile.kept,
        "note": tile.note,
        # shares of the variance, which sum to 1 as the prompts' do
        "seeds": [[str(seed), round(weight * weight, 4)] for seed, weight in seeds[:SEEDS_SHOWN]],
        "more_seeds": max(0, len(seeds) - SEEDS_SHOWN),
        "prompts": [list(one) for one in zip(mixture.prompts, mixture.prompt_weights, strict=True)],
    }
