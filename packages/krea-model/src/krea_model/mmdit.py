"""The whole transformer of Krea 2 in one file. Parameter names are those of the released checkpoint.

A batch is flat: the tokens of all samples lie end to end and `lengths` says where each ends, so nothing is ever
computed on padding. Time runs from 1 (noise) to 0 (image); the output is the velocity noise - image.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from krea_model import kernels
from krea_model.attention import attend
from krea_model.configs import Config
from krea_model.inputs import check_batch, check_states
from krea_model.interfaces import Conditioning, Grids
from krea_model.kernels.reference import rms_norm
from krea_model.spans import Spans

__all__ = ["MMDiT"]


class RMSNorm(nn.Module):
    """RMS norm whose weight is stored around zero: it multiplies by 1 + scale, in fp32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class QKNorm(nn.Module):
    """Separate norms for queries and keys, over the head size, and then the rotation of their positions."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.qnorm = RMSNorm(head)
        self.knorm = RMSNorm(head)

    def forward(self, q: Tensor, k: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        if rope is None:
            return self.qnorm(q), self.knorm(k)
        return kernels.norm_rotate(q, self.qnorm.scale, rope), kernels.norm_rotate(k, self.knorm.scale, rope)


class Attention(nn.Module):
    """Grouped-query attention with a sigmoid gate on its output, before the output projection."""

    def __init__(self, features: int, heads: int, kvheads: int) -> None:
        super().__init__()
        self.head = features // heads
        self.wq = nn.Linear(features, heads * self.head, bias=False)
        self.wk = nn.Linear(features, kvheads * self.head, bias=False)
        self.wv = nn.Linear(features, kvheads * self.head, bias=False)
        self.gate = nn.Linear(features, features, bias=False)
        self.wo = nn.Linear(features, features, bias=False)
        self.qknorm = QKNorm(self.head)

    def forward(self, x: Tensor, spans: Spans, rope: Tensor | None = None) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head)) for w in (self.wq, self.wk, self.wv))
        q, k = self.qknorm(q, k, rope)
        out = attend(q, k, v, spans).flatten(-2)
        return self.wo(kernels.gate_output(out, self.gate(x)))


class SwiGLU(nn.Module):
    """(silu(x gate) * (x up)) down."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, hidden, bias=False)
        self.up = nn.Linear(features, hidden, bias=False)
        self.down = nn.Linear(hidden, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return in_pieces(lambda rows: self.down(kernels.swiglu(self.gate(rows), self.up(rows))), x, 1024)


class Modulation(nn.Module):
    """A learned table that a block adds to the shared modulation of the timestep; `rows` vectors in one tensor."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.lin = nn.Parameter(torch.zeros(*shape))


class TextBlock(nn.Module):
    """A pre-norm block without modulation and without positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.prenorm = RMSNorm(config.txtdim)
        self.postnorm = RMSNorm(config.txtdim)
        self.attn = Attention(config.txtdim, config.txtheads, config.txtkvheads)
        self.mlp = SwiGLU(config.txtdim, config.txtmlp)

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        x = x + self.attn(self.prenorm(x), spans)
        return x + self.mlp(self.postnorm(x))


class TextFusion(nn.Module):
    """Attend over the taps of each token, project the taps to one, attend over the tokens of each prompt."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layerwise_blocks = nn.ModuleList(TextBlock(config) for _ in range(2))
        self.projector = nn.Linear(config.txtlayers, 1, bias=False)
        self.refiner_blocks = nn.ModuleList(TextBlock(config) for _ in range(2))

    def forward(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        x = in_pieces(self.fuse, states, 64)
        spans = Spans.of(lengths, x.device)
        for block in self.refiner_blocks:
            x = block(x, spans)
        return x

    def fuse(self, states: Tensor) -> Tensor:
        """`t k f` -> `t f`: every token by itself, so that many tokens may be done in pieces."""
        tokens, taps, _ = states.shape
        spans = Spans.of((taps,) * tokens, states.device)
        x = states.flatten(0, 1)
        for block in self.layerwise_blocks:
            x = block(x, spans)
        return self.projector(x.unflatten(0, (tokens, taps)).transpose(1, 2)).squeeze(-1)


class Block(nn.Module):
    """A single-stream block; all blocks share one timestep modulation and add a table of their own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mod = Modulation(6 * config.features)
        self.prenorm = RMSNorm(config.features)
        self.postnorm = RMSNorm(config.features)
        self.attn = Attention(config.features, config.heads, config.kvheads)
        self.mlp = SwiGLU(config.features, config.mlp)

    def forward(self, x: Tensor, mod: Tensor, spans: Spans, rope: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = (mod + self.mod.lin.to(mod.dtype)).chunk(6, -1)
        y = self.attn(kernels.rms_norm_modulate(x, self.prenorm.scale, scale1, shift1, spans), spans, rope)
        x = kernels.gated_residual(x, y, gate1, spans)
        y = self.mlp(kernels.rms_norm_modulate(x, self.postnorm.scale, scale2, shift2, spans))
        return kernels.gated_residual(x, y, gate2, spans)


class LastLayer(nn.Module):
    """Modulated norm and the projection to velocity."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.modulation = Modulation(2, config.features)
        self.norm = RMSNorm(config.features)
        self.linear = nn.Linear(config.features, config.token_features)

    def forward(self, x: Tensor, temb: Tensor, spans: Spans) -> Tensor:
        scale, shift = (temb + row.to(temb.dtype) for row in self.modulation.lin)
        return self.linear(kernels.rms_norm_modulate(x, self.norm.scale, scale, shift, spans))


class MMDiT(nn.Module):
    """Velocity of a batch of images of any sizes under prompts of any lengths; see `interfaces.Velocity`.

    Source: Krea 2 technical report, section "Architecture"; sizes and names from the released checkpoint.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        f = config.features
        self.first = nn.Linear(config.token_features, f)
        self.tmlp = nn.Sequential(nn.Linear(config.tdim, f), nn.GELU("tanh"), nn.Linear(f, f))
        self.tproj = nn.Sequential(nn.GELU("tanh"), nn.Linear(f, 6 * f))
        self.txtfusion = TextFusion(config)
        self.txtmlp = nn.Sequential(
            RMSNorm(config.txtdim), nn.Linear(config.txtdim, f), nn.GELU("tanh"), nn.Linear(f, f)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.last = LastLayer(config)

    def text(self, cond: Conditioning) -> Tensor:
        """The text stage, `t f`: it depends on neither time nor image, so a sampler runs it once per prompt."""
        check_states(self.config, cond)
        states = cond.states.to(self.first.weight.dtype)
        return self.txtmlp(self.txtfusion(states, cond.lengths))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids, text: Tensor | None = None) -> Tensor:
        """x: `s f` image tokens, t: `b` in [0, 1]; `text` replaces the text stage by its earlier result.

        ValueError for what is no batch of this model (`inputs.check_batch`).
        """
        check_batch(self.config, x, t, cond, grids, text)
        text = self.text(cond) if text is None else text
        image = self.first(x.to(self.first.weight.dtype))
        sizes = [h * w for h, w in grids]
        lengths = [n + m for n, m in zip(cond.lengths, sizes, strict=True)]
        seq, spans = interleave(text, image, cond.lengths, sizes), Spans.of(lengths, x.device)
        rope = rope_table(cond.lengths, grids, self.config.axes, self.config.theta, x.device)
        temb = self.tmlp(timestep_features(t, self.config.tdim).to(image.dtype))
        mod = self.tproj(temb)
        for block in self.blocks:
            seq = block(seq, mod, spans, rope)
        return self.last(image_tokens(seq, cond.lengths, sizes), temb, Spans.of(sizes, x.device)).to(x.dtype)


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """`function(x)`; on the CPU by pieces of that many rows, whose intermediate results then stay in its cache."""
    if x.device.type != "cpu" or len(x) <= rows or torch.compiler.is_compiling():
        return function(x)
    return torch.cat([function(part) for part in x.chunk(-(-len(x) // rows))])


def interleave(text: Tensor, image: Tensor, texts: Sequence[int], images: Sequence[int]) -> Tensor:
    """All text tokens and all image tokens -> text and image of sample 0, of sample 1, and so on."""
    pairs = zip(text.split(list(texts)), image.split(list(images)), strict=True)
    return torch.cat([part for pair in pairs for part in pair])


def image_tokens(seq: Tensor, texts: Sequence[int], images: Sequence[int]) -> Tensor:
    """The image part of every sample of an interleaved sequence, end to end."""
    sizes = [n for pair in zip(texts, images, strict=True) for n in pair]
    return torch.cat(seq.split(sizes)[1::2])


def timestep_features(t: Tensor, size: int) -> Tensor:
    """Sinusoids of 1000 t, cosines first; t: `b` -> `b size`, fp32."""
    half = size // 2
    freqs = torch.exp(-math.log(1e4) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    args = t.float()[:, None] * 1000 * freqs
    return torch.cat([args.cos(), args.sin()], -1)


def rope_table(texts: Sequence[int], grids: Grids, axes: Sequence[int], theta: float, device: torch.device) -> Tensor:
    """cos and sin of every token's rotary angles, `s d/2 2`: text at the origin, image tokens at (0, row, column)."""
    parts = []
    for n, (h, w) in zip(texts, grids, strict=True):
        parts.append(torch.zeros(n, 3, dtype=torch.float64))
        rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        parts.append(torch.stack([torch.zeros_like(rows), rows, cols], -1).reshape(-1, 3).double())
    pos = torch.cat(parts).to(device if device.type != "mps" else "cpu")  # which has no float64
    angles = torch.cat(
        [pos[:, i, None] * theta ** (-torch.arange(0, m, 2).to(pos) / m) for i, m in enumerate(axes)], -1
    )
    return torch.stack([angles.cos(), angles.sin()], -1).float().to(device)
