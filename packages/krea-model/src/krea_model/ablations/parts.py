"""The parts that Krea 2 was weighed against, in plain torch. Each takes the place of one in `mmdit`.

A part that stands in for another takes over the modules it shares with it, so that parameters keep their names and
swaps can be combined. Where the model has a fused operation for a part, its replacement goes without.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krea_model import kernels
from krea_model.attention import attend
from krea_model.configs import Config
from krea_model.inputs import check_batch
from krea_model.interfaces import Conditioning, Grids
from krea_model.mmdit import Attention, Block, LastLayer, MMDiT, Modulation, SwiGLU, TextFusion, timestep_features
from krea_model.spans import Spans

__all__ = [
    "GeluMLP",
    "HeadNorm",
    "LastTap",
    "LayerNorm",
    "PlainBlock",
    "PlainLast",
    "PlainRMSNorm",
    "TimeTokens",
    "Ungated",
]

EPS = 1e-5


class PlainRMSNorm(nn.Module):
    """RMS norm whose weight, `gain`, is stored as it multiplies: weight decay pulls it to 0, not to 1."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))

    @property
    def scale(self) -> Tensor:
        """The same weight around zero, as the fused operations take it."""
        return self.gain.float() - 1

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.gain.float(), EPS).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with weight (`gain`) and bias, in fp32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], self.gain.float(), self.bias.float(), EPS).to(x.dtype)


class GeluMLP(nn.Module):
    """gelu(x up) down with half again the hidden width of the SwiGLU it replaces: two matrices for three."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        hidden, features = mlp.up.weight.shape
        self.up = nn.Linear(features, hidden * 3 // 2, bias=False)
        self.down = nn.Linear(hidden * 3 // 2, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class HeadNorm(nn.Module):
    """In the place of `mmdit.QKNorm`: any norms of queries and keys, or none, and then the rotation."""

    def __init__(self, qnorm: nn.Module, knorm: nn.Module) -> None:
        super().__init__()
        self.qnorm, self.knorm = qnorm, knorm

    def forward(self, q: Tensor, k: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k = self.qnorm(q), self.knorm(k)
        return (q, k) if rope is None else (rotate(q, rope), rotate(k, rope))


class Ungated(nn.Module):
    """Attention whose output goes into the output projection as it is."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.head = attention.head
        self.wq, self.wk, self.wv, self.wo = attention.wq, attention.wk, attention.wv, attention.wo
        self.qknorm = attention.qknorm

    def forward(self, x: Tensor, spans: Spans, rope: Tensor | None = None) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head)) for w in (self.wq, self.wk, self.wv))
        q, k = self.qknorm(q, k, rope)
        return self.wo(attend(q, k, v, spans).flatten(-2))


class PlainBlock(nn.Module):
    """A main block that calls its norms as modules, so that they may be of any kind, with one of three modulations.

    shared: a table is added to that of all blocks, as in the model. own: `mod` is the activated time embedding and the
    block has a projection of it, whose bias is the table. none: scales and gates are 1, shifts 0.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.mod: Modulation | None = block.mod
        self.prenorm: nn.Module = block.prenorm
        self.postnorm: nn.Module = block.postnorm
        self.attn, self.mlp = block.attn, block.mlp
        self.modproj: nn.Linear | None = None

    def forward(self, x: Tensor, mod: Tensor, spans: Spans, rope: Tensor) -> Tensor:
        if self.mod is None:
            x = x + self.attn(self.prenorm(x), spans, rope)
            return x + self.mlp(self.postnorm(x))
        mod = mod if self.modproj is None else self.modproj(mod)
        scale1, shift1, gate1, scale2, shift2, gate2 = (mod + self.mod.lin.to(mod.dtype)).chunk(6, -1)
        y = self.attn(modulate(self.prenorm(x), scale1, shift1, spans), spans, rope)
        x = kernels.gated_residual(x, y, gate1, spans)
        y = self.mlp(modulate(self.postnorm(x), scale2, shift2, spans))
        return kernels.gated_residual(x, y, gate2, spans)


class PlainLast(nn.Module):
    """The last layer with a norm of any kind, modulated or not."""

    def __init__(self, last: LastLayer) -> None:
        super().__init__()
        self.modulation: Modulation | None = last.modulation
        self.norm: nn.Module = last.norm
        self.linear = last.linear

    def forward(self, x: Tensor, temb: Tensor, spans: Spans) -> Tensor:
        if self.modulation is None:
            return self.linear(self.norm(x))
        scale, shift = (temb + row.to(temb.dtype) for row in self.modulation.lin)
        return self.linear(modulate(self.norm(x), scale, shift, spans))


class LastTap(nn.Module):
    """Text fusion that sees the last tap only: no attention over taps, no projector, the same refiner blocks."""

    def __init__(self, fusion: TextFusion) -> None:
        super().__init__()
        self.refiner_blocks = fusion.refiner_blocks

    def forward(self, states: Tensor, lengths: tuple[int, ...]) -> Tensor:
        x, spans = states[:, -1], Spans.of(lengths, states.device)
        for block in self.refiner_blocks:
            x = block(x, spans)
        return x


class TimeTokens(MMDiT):
    """Time as tokens before the text, at its position, in the place of every modulation.

    Each token is the time embedding plus a learned vector of its own. The report's 4 to 16 tokens do at 256 pixels and
    fail at 512 and 1024 (Krea 2 technical report, section "Architecture"; in-context tokens: arXiv 2512.02012).
    """

    def __init__(self, config: Config, tokens: int = 8) -> None:
        super().__init__(config)
        self.times = Modulation(tokens, config.features)
        nn.init.normal_(self.times.lin, std=config.features**-0.5)
        self.tproj = nn.Identity()
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            plain = PlainBlock(block)
            plain.mod = None
            self.blocks[i] = plain
        last = PlainLast(self.last)
        last.modulation = None
        self.add_module("last", last)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids, text: Tensor | None = None) -> Tensor:
        """As `MMDiT.forward`; `text` is what `text` gives, without the time."""
        check_batch(self.config, x, t, cond, grids, text)
        text = self.text(cond) if text is None else text
        temb = self.tmlp(timestep_features(t, self.config.tdim).to(text.dtype))
        rows = temb[:, None] + self.times.lin.to(temb.dtype)
        pairs = zip(rows, text.split(list(cond.lengths)), strict=True)
        led = torch.cat([part for pair in pairs for part in pair])
        lengths = tuple(rows.shape[1] + n for n in cond.lengths)
        return super().forward(x, t, Conditioning(led[:, None], lengths), grids, led)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, spans: Spans) -> Tensor:
    """(1 + scale) x + shift; x: `s f`, scale and shift: `b f`."""
    return x * (1 + scale).index_select(0, spans.owner) + shift.index_select(0, spans.owner)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate consecutive pairs of each head in fp32; x: `s n d`, rope: `s d/2 2` (cos, sin)."""
    (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), rope[:, None].unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
