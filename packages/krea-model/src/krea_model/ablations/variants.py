"""The rows of the report's ablation table as whole models, and how many parameters each has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from krea_model import initial
from krea_model.ablations.parts import (
    GeluMLP,
    HeadNorm,
    LastTap,
    LayerNorm,
    PlainBlock,
    PlainLast,
    PlainRMSNorm,
    TimeTokens,
    Ungated,
)
from krea_model.configs import Config
from krea_model.mmdit import Attention, Block, LastLayer, MMDiT, QKNorm, RMSNorm, SwiGLU, TextFusion

__all__ = ["BASELINE", "VARIANTS", "Row", "counts", "initialise", "table", "variant"]

VARIANTS = (
    "mha",
    "gelu",
    "no_gate",
    "no_qk_norm",
    "plain_rms_norm",
    "layer_norm",
    "per_block_modulation",
    "time_tokens",
    "last_layer_text",
    "t5",
)
"""Each changes one thing; `variant` says what."""

BASELINE = "mha+gelu+no_gate+layer_norm+per_block_modulation+t5"
"""The column "baseline" of the report's table."""

EXCLUSIVE = (("plain_rms_norm", "layer_norm"), ("per_block_modulation", "time_tokens"), ("last_layer_text", "t5"))


def variant(name: str, config: Config, *, t5_width: int = 4096) -> MMDiT:
    """The model with one part swapped, or several with their names joined by "+"; an `interfaces.Velocity`.

    Build it under `torch.device("meta")` to count only. Weights are torch's defaults; see `initialise`. Source of the
    choices: Krea 2 technical report, section "Architecture".

    mha: as many key-value heads as heads (config). gelu: MLPs of two matrices and as many parameters.
    no_gate: attention output is not multiplied by a sigmoid. no_qk_norm: queries and keys are not normed.
    plain_rms_norm: norm weights are stored around one. layer_norm: in blocks, text projection and last layer; queries
    and keys keep theirs. per_block_modulation: each block projects the time embedding for itself.
    time_tokens: time as 8 tokens and no modulation. last_layer_text: of all taps, the last one.
    t5: text states `t 1 t5_width` (4096: T5-XXL), treated as in last_layer_text (config).
    """
    names = name.split("+")
    if unknown := [one for one in names if one not in VARIANTS]:
        raise ValueError(f"no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}, and several joined by +")
    for pair in EXCLUSIVE:
        if set(pair) <= set(names):
            raise ValueError(f"{pair[0]} and {pair[1]} swap the same part; take one of them")
    if "mha" in names:
        config = replace(config, kvheads=config.heads)
    if "t5" in names:
        head = config.txtdim // config.txtheads
        heads = t5_width // head
        config = replace(config, txtdim=t5_width, txtlayers=1, txtheads=heads, txtkvheads=heads)
    model = TimeTokens(config) if "time_tokens" in names else MMDiT(config)
    for one in sorted(names, key=VARIANTS.index):
        _swap(model, one)
    return model


def _swap(model: MMDiT, name: str) -> None:
    match name:
        case "gelu":
            _replace(model, SwiGLU, GeluMLP)
        case "no_gate":
            _replace(model, Attention, Ungated)
        case "no_qk_norm":
            _replace(model, QKNorm, lambda _: HeadNorm(nn.Identity(), nn.Identity()))
        case "plain_rms_norm":
            _replace(model, RMSNorm, lambda norm: PlainRMSNorm(len(norm.scale)))
        case "layer_norm":
            _replace(model, Block, PlainBlock)
            _replace(model, LastLayer, PlainLast)
            _replace(model, RMSNorm, lambda norm: LayerNorm(len(norm.scale)), outside=(QKNorm, HeadNorm))
        case "per_block_modulation":
            _replace(model, Block, PlainBlock)
            model.tproj = model.tproj[:1]  # its activation
            for block in model.modules():
                if isinstance(block, PlainBlock):
                    block.modproj = nn.Linear(model.config.features, 6 * model.config.features, bias=False)
        case "last_layer_text" | "t5":
            _replace(model, TextFusion, LastTap)
        case _:  # a matter of config or of the class
            pass


def _replace(model: nn.Module, kind: type, make: Callable[[Any], nn.Module], outside: tuple[type, ...] = ()) -> None:
    """Put `make(part)` in the place of every part of that kind, but not inside of modules of the kinds `outside`."""
    for name, part in list(model.named_children()):
        if isinstance(part, kind):
            setattr(model, name, make(part))
        elif not isinstance(part, outside):
            _replace(part, kind, make, outside)


@torch.no_grad()
def initialise(model: MMDiT, seed: int) -> MMDiT:
    """Starting weights as those of `initial.initialise`, for any variant: blocks begin as the identity.

    Norms begin at weight one and bias zero, projections of a block's own modulation at zero.
    """
    initial.initialise(model, seed)
    for part in model.modules():
        if isinstance(part, PlainRMSNorm | LayerNorm):
            part.gain.fill_(1)
        elif isinstance(part, PlainBlock) and part.modproj is not None:
            part.modproj.weight.zero_()
        elif isinstance(part, TimeTokens):  # equal tokens would stay equal for ever
            draw = torch.Generator().manual_seed(seed)
            part.times.lin.copy_(torch.randn(part.times.lin.shape, generator=draw) * part.config.features**-0.5)
    return model


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Parameters of a variant, how many more than the released model of that size, and how many of them modulate."""

    name: str
    parameters: int
    difference: int
    modulation: int


def counts(config: Config) -> list[Row]:
    """A row for the released parts, for every variant and for the report's baseline; nothing is allocated."""
    with torch.device("meta"):
        models = {"released": MMDiT(config)} | {name: variant(name, config) for name in (*VARIANTS, BASELINE)}
    totals = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return [
        Row(
            name=name,
            parameters=totals[name],
            difference=totals[name] - totals["released"],
            modulation=sum(_modulating(model)),
        )
        for name, model in models.items()
    ]


def _modulating(model: MMDiT) -> Iterator[int]:
    for name, p in model.named_parameters():
        if name.startswith(("tproj.", "last.modulation.")) or ".mod.lin" in name or ".modproj." in name:
            yield p.numel()


def table(config: Config) -> str:
    """`counts` in Markdown."""
    rows = [
        f"| {row.name} | {row.parameters:,} | {row.difference:+,} | {100 * row.modulation / row.parameters:.1f} % |"
        for row in counts(config)
    ]
    head = ["| variant | parameters | difference | for modulation |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*head, *rows]) + "\n"
