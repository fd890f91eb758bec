"""A Velocity that listens to style: a small attention from image tokens to style tokens after every block.

The base model's weights are not touched and not owned: the state of a `StyledMMDiT` is the style module alone. Style
goes through an attention of its own rather than through the text sequence for three reasons: what a block gains is
linear in the strength (the base normalises every token, so scaling tokens in the sequence would do little),
references do not compete with the words of the prompt, and style tokens have no position, so no image token is nearer
to one than another.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from krea_model.inputs import check_batch
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.mmdit import MMDiT, image_tokens, interleave, rope_table, timestep_features
from krea_model.spans import Spans
from krea_model.tensorfiles import replaced
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from krea_style.encoder import Features, ImageStyleEncoder, Resampler, StyleConfig
from krea_style.reference import Style

__all__ = ["StyleAttention", "StyledMMDiT", "fingerprint", "load", "save"]

FORMAT = "krea-style 1"


class StyleAttention(nn.Module):
    """What a block's image tokens take from the style tokens; the output projection starts at zero."""

    def __init__(self, features: int, config: StyleConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.RMSNorm(features, eps=1e-5)
        self.wq = nn.Linear(features, config.width, bias=False)
        self.wk = nn.Linear(config.features, config.width, bias=False)
        self.wv = nn.Linear(config.features, config.width, bias=False)
        self.wo = nn.Linear(config.width, features, bias=False)
        nn.init.zeros_(self.wo.weight)

    def forward(self, image: Tensor, style: Style, sizes: Sequence[int]) -> Tensor:
        """image: `s f`, tokens of all images end to end with `sizes` tokens each -> what to add, `s f`."""
        q = self.wq(self.norm(image)).unflatten(-1, (self.heads, -1))
        k, v = (w(style.tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.wk, self.wv))
        starts, owners = owners_of(style.counts, sizes)
        out = torch.zeros_like(q)
        for size in sorted({sizes[i] for i in owners}):
            chosen = [r for r, i in enumerate(owners) if sizes[i] == size]
            rows = torch.tensor([starts[owners[r]] for r in chosen], device=q.device)[:, None]
            rows = rows + torch.arange(size, device=q.device)
            found = F.scaled_dot_product_attention(q[rows].transpose(1, 2), k[chosen], v[chosen]).transpose(1, 2)
            scales = torch.tensor([style.scales[r] for r in chosen], device=found.device, dtype=found.dtype)
            found = found * scales[:, None, None, None]
            out = out.index_add(0, rows.flatten(), found.flatten(0, 1))
        return self.wo(out.flatten(-2))


class StyledMMDiT(nn.Module):
    """A base model that also takes a `Style`; without one, or at strength 0, it is the base bit for bit.

    Building it freezes the base (no gradients for its weights). `parameters()` and `state_dict()` hold the style
    module alone; move the base to its device yourself.
    """

    base: MMDiT

    def __init__(self, base: MMDiT, config: StyleConfig) -> None:
        super().__init__()
        self.__dict__["base"] = base.requires_grad_(False)  # past nn.Module: not ours to save or to train
        self.config = config
        self.resampler = Resampler(config)
        self.adapters = nn.ModuleList(StyleAttention(base.config.features, config) for _ in base.blocks)

    def encoder(self, features: Features) -> ImageStyleEncoder:
        """The style encoder that belongs to this module, on frozen features of the widths it was built for."""
        return ImageStyleEncoder(features, self.resampler)

    def styled(self, style: Style) -> Velocity:
        """A plain `Velocity` with that style, for any sampler; guidance sees it in both halves of its doubled batch."""

        def velocity(x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
            times, rest = divmod(len(grids), len(style.counts))
            if rest:
                raise ValueError(f"{len(grids)} images for a style of {len(style.counts)}; give one style per image")
            return self(x, t, cond, grids, style.repeat(times))

        return velocity

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids, style: Style | None = None) -> Tensor:
        """x: `s f`, t: `b`; `style` has one count per image. Follows `MMDiT.forward` with one addition per block."""
        style = None if style is None else self.active(style, len(grids))
        if style is None:
            return self.base(x, t, cond, grids)
        base, text = self.base, self.base.text(cond)
        check_batch(base.config, x, t, cond, grids, text)
        sizes = [h * w for h, w in grids]
        lengths = [n + m for n, m in zip(cond.lengths, sizes, strict=True)]
        spans = Spans.of(lengths, x.device)
        seq = interleave(text, base.first(x.to(base.first.weight.dtype)), cond.lengths, sizes)
        rope = rope_table(cond.lengths, grids, base.config.axes, base.config.theta, x.device)
        temb = base.tmlp(timestep_features(t, base.config.tdim).to(seq.dtype))
        mod = base.tproj(temb)
        nothing = torch.zeros_like(text)
        for block, adapter in zip(base.blocks, self.adapters, strict=True):
            seq = block(seq, mod, spans, rope)
            heard = adapter(image_tokens(seq, cond.lengths, sizes).to(style.tokens.dtype), style, sizes)
            seq = seq + interleave(nothing, heard.to(seq.dtype), cond.lengths, sizes)
        return base.last(image_tokens(seq, cond.lengths, sizes), temb, Spans.of(sizes, x.device)).to(x.dtype)

    def active(self, style: Style, images: int) -> Style | None:
        """The references that act, in this module's precision; None if none does."""
        if len(style.counts) != images or style.tokens.shape[-1] != self.config.features:
            raise ValueError(
                f"a style of {len(style.counts)} images with tokens of width {style.tokens.shape[-1]} for {images} "
                f"images and width {self.config.features}; encode the references with this module's encoder"
            )
        rows = [row for row, scale in enumerate(style.scales) if scale != 0]
        if not rows:
            return None
        _, owners = owners_of(style.counts, ())
        counts = tuple(sum(owners[row] == image for row in rows) for image in range(images))
        tokens = style.tokens if len(rows) == len(style.scales) else style.tokens[rows]
        return Style(tokens.to(self.resampler.queries), tuple(style.scales[row] for row in rows), counts)


def owners_of(counts: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where each image's tokens start, and to which image each reference belongs."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts, [image for image, count in enumerate(counts) for _ in range(count)]


def fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes and up to 64 values of every parameter, the same in fp32 and bf16."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        flat = value.detach().flatten()
        picks = torch.linspace(0, len(flat) - 1, min(64, len(flat)), dtype=torch.float64).round().long()
        some = flat[picks.to(flat.device)].to("cpu", torch.bfloat16).float()
        digest.update(f"{name} {tuple(value.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def save(module: StyledMMDiT, path: Path) -> None:
    """Write the style module as safetensors, with its sizes and the fingerprint of its base in the header."""
    manifest = {
        "format": FORMAT,
        "config": json.dumps(asdict(module.config)),
        "base_config": json.dumps(asdict(module.base.config)),
        "base": fingerprint(module.base),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with replaced(path) as part:
        save_file(tensors, part, manifest)


def load(path: Path, base: MMDiT, *, other_base: bool = False) -> StyledMMDiT:
    """Read a style module for `base`; ValueError if it was trained on another, unless `other_base` allows that.

    A base of other sizes is always refused. `other_base` is for fine-tunes and merges of the base it was trained on.
    """
    with safe_open(path, "pt") as file:
        manifest = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a style module ({manifest.get('format')!r}, expected {FORMAT!r})")
    if json.loads(manifest["base_config"]) != asdict(base.config):
        raise ValueError(f"{path} was trained on a base with {manifest['base_config']}; this one has {base.config}")
    found = fingerprint(base)
    if manifest["base"] != found and not other_base:
        raise ValueError(
            f"{path} was trained on base {manifest['base'][:12]}, this is {found[:12]}; load that base, or pass "
            "other_base=True if this is a fine-tune of it"
        )
    config = json.loads(manifest["config"])
    module = StyledMMDiT(base, StyleConfig(**{**config, "levels": tuple(config["levels"])}))
    module.load_state_dict(tensors)
    return module
