"""Everything that wants a GPU, in one run of a few minutes: `python tools/gpu_check.py --out FOLDER`.

It compares attention backends with a plain fp64 reference, fused kernels with their definition, our transformer with
diffusers' on the same weights, and takes the time and memory of a step of both. It writes `gpu.json` and `gpu.md` and
fails if a comparison does. `--dry-run` walks through the same code on the CPU in tiny sizes, where times mean nothing.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from krea_model import configs, kernels
from krea_model.attention import attend
from krea_model.interfaces import Conditioning
from krea_model.kernels import reference
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.sizes import diffusers_config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = (
    SDPBackend.MATH,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)
# Largest error over the largest value of the reference: rounding alone stays well below.
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
MODEL_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A batch of images of one grid, with texts of these lengths."""

    name: str
    side: int
    texts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a run measures."""

    device: str
    config: configs.Config
    lengths: tuple[int, ...]
    cases: tuple[Case, ...]
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure; `limit` turns it into a check."""

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.limit is not None and self.value is not None and not self.value <= self.limit


def full() -> Sizes:
    """About one billion parameters at 512 and 1024 pixels (16 pixels per token and side)."""
    cases = (
        Case(name="512px, equal texts", side=32, texts=(128,) * 4),
        Case(name="512px, ragged texts", side=32, texts=(16, 64, 192, 512)),
        Case(name="1024px, ragged texts", side=64, texts=(64, 256)),
    )
    lengths = (1152, 1040, 1152, 4352)
    return Sizes(device="cuda", config=configs.base(), lengths=lengths, cases=cases, repeats=5)


def dry() -> Sizes:
    """The same walk on the CPU, in a second."""
    cases = (Case(name="equal texts", side=3, texts=(5, 5)), Case(name="ragged texts", side=3, texts=(2, 5)))
    return Sizes(device="cpu", config=configs.tiny(), lengths=(9, 7, 9), cases=cases, repeats=1)


def environment(device: str) -> dict[str, str]:
    """Versions and the device, so that figures can be compared later."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    found["flash_attn"] = "installed" if importlib.util.find_spec("flash_attn") else "not installed"
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"device": card.name, "capability": f"{card.major}.{card.minor}"}
        found["memory"] = f"{card.total_memory / 2**30:.1f} GiB"
    else:
        found["device"] = platform.processor() or platform.machine()
    return found


def exact(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention by its definition in fp64, one sequence at a time; arguments as `krea_model.attention.attend`."""
    parts = []
    for one in zip(*(x.double().split(list(lengths)) for x in (q, k, v)), strict=True):
        a, b, c = (x.transpose(0, 1) for x in one)
        b, c = (x.repeat_interleave(a.shape[0] // x.shape[0], 0) for x in (b, c))
        parts.append((torch.softmax(a @ b.mT / a.shape[-1] ** 0.5, -1) @ c).transpose(0, 1))
    return torch.cat(parts)


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest wanted value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def attention_rows(sizes: Sizes) -> Iterator[Row]:
    """Every backend and precision against the definition, on sequences of several lengths."""
    heads, kvheads = sizes.config.heads, sizes.config.kvheads
    shape = (sum(sizes.lengths), heads, sizes.config.features // heads)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(shape[0], n, shape[2], generator=generator) for n in (heads, kvheads, kvheads))
    for dtype in LIMITS:
        a, b, c = (x.to(sizes.device, dtype) for x in (q, k, v))
        wanted = exact(a, b, c, sizes.lengths)
        for backend in BACKENDS:
            name = f"attention {backend.name.lower()} {str(dtype).removeprefix('torch.')}"
            try:
                with sdpa_kernel(backend):
                    found = error(attend(a, b, c, sizes.lengths), wanted)
                    ms, _ = measure(lambda a=a, b=b, c=c: attend(a, b, c, sizes.lengths), sizes)
            except RuntimeError as refusal:
                if not str(refusal).startswith(("No available kernel", "No viable backend")):
                    raise
                yield Row(name=name, value=None, unit="", note="not for these inputs on this device")
                continue
            yield Row(name=f"{name}: error", value=found, unit="", limit=LIMITS[dtype])
            yield Row(name=f"{name}: time", value=ms, unit="ms")


def operands(sizes: Sizes) -> dict[str, tuple[Tensor, ...]]:
    """fp32 arguments for every operation of `krea_model.kernels`, as many tokens as the attention check has."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(sizes.device)

    config, tokens, samples = sizes.config, sum(sizes.lengths), len(sizes.lengths)
    f, head = config.features, config.features // config.heads
    sample = torch.arange(samples).repeat_interleave(torch.tensor(sizes.lengths)).to(sizes.device)
    angles = normal(tokens, head // 2)
    return {
        "rms_norm_modulate": (normal(tokens, f), normal(f), normal(samples, f), normal(samples, f), sample),
        "rotate": (normal(tokens, config.heads, head), torch.stack([angles.cos(), angles.sin()], -1)),
        "gate_output": (normal(tokens, f), normal(tokens, f)),
        "swiglu": (normal(tokens, config.mlp), normal(tokens, config.mlp)),
    }


def kernel_rows(sizes: Sizes) -> Iterator[Row]:
    """The chosen implementation of every operation against its definition in fp32, forward and backward, and times."""
    for operation, given in operands(sizes).items():
        chosen, plain = getattr(kernels, operation), getattr(reference, operation)
        wanted, slopes = outcome(plain, given)
        for dtype, limit in LIMITS.items():
            name = f"kernel {operation} {str(dtype).removeprefix('torch.')}"
            rounded = [x.to(dtype) if x.is_floating_point() and x.shape[-1] != 2 else x for x in given]  # angles stay
            found, found_slopes = outcome(chosen, rounded)
            yield Row(name=f"{name}: error", value=error(found, wanted), unit="", limit=limit)
            worst = max(error(a, b) for a, b in zip(found_slopes, slopes, strict=True))
            yield Row(name=f"{name}: error of gradients", value=worst, unit="", limit=limit)
            for who, function in (("chosen", chosen), ("plain", plain)):
                ms, _ = measure(lambda f=function, x=rounded: f(*x), sizes)
                yield Row(name=f"{name}, {who}: time", value=ms, unit="ms")


def outcome(function: Callable[..., Tensor], given: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result, and the gradients of its square's mean with respect to every floating-point argument."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in given]
    out = function(*leaves)
    out.float().square().mean().backward()
    return out.detach(), [x.grad for x in leaves if x.grad is not None]


def pair(sizes: Sizes, dtype: torch.dtype) -> tuple[MMDiT, nn.Module]:
    """Our transformer and diffusers', with the same random weights."""
    from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel

    torch.manual_seed(0)
    with torch.device(sizes.device):
        ours = MMDiT(sizes.config)
        built = Krea2Transformer2DModel.from_config(diffusers_config(sizes.config))
    theirs = cast(nn.Module, built)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    rows = {to_diffusers(name): tensor for name, tensor in ours.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in rows.items()})
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            if "norm" not in name and not name.endswith(".scale"):  # norms stay in fp32, as both are loaded
                parameter.data = parameter.data.to(dtype)
    return ours, theirs


def calls(sizes: Sizes, case: Case, dtype: torch.dtype, models: tuple[MMDiT, nn.Module]) -> list[Callable[[], Tensor]]:
    """The same batch for both models: flat for ours, padded and masked for diffusers'; both return `s f`."""
    ours, theirs = models
    config, count, longest = sizes.config, len(case.texts), max(case.texts)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, case.side**2, config.token_features, generator=generator).to(sizes.device, dtype)
    states = torch.randn(sum(case.texts), config.txtlayers, config.txtdim, generator=generator)
    states = states.to(sizes.device, dtype)
    t = torch.linspace(0.125, 0.875, count, device=sizes.device)
    padded = torch.nn.utils.rnn.pad_sequence(list(states.split(list(case.texts))), batch_first=True)
    mask = torch.arange(longest, device=sizes.device) < torch.tensor(case.texts, device=sizes.device)[:, None]
    places = torch.zeros(longest + case.side**2, 3, device=sizes.device)
    places[longest:, 1] = torch.arange(case.side).repeat_interleave(case.side)
    places[longest:, 2] = torch.arange(case.side).repeat(case.side)
    cond = Conditioning(states, case.texts)
    given: dict[str, Any] = {"hidden_states": x, "encoder_hidden_states": padded, "timestep": t, "position_ids": places}
    given["encoder_attention_mask"] = None if mask.all() else mask
    return [
        lambda: ours(x.flatten(0, 1), t, cond, [(case.side, case.side)] * count),
        lambda: theirs(**given, return_dict=False)[0].flatten(0, 1),
    ]


def model_rows(sizes: Sizes) -> Iterator[Row]:
    """Outputs of both models against each other, then time and memory of forward, and of forward with backward."""
    for dtype in MODEL_LIMITS:
        models = pair(sizes, dtype)
        for case in sizes.cases:
            name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
            both = calls(sizes, case, dtype, models)
            with torch.no_grad():
                yield Row(
                    name=f"{name}: difference", value=error(both[0](), both[1]()), unit="", limit=MODEL_LIMITS[dtype]
                )
            if dtype is torch.float32 and sizes.device == "cuda":
                continue
            for who, call, model in zip(("krea_model", "diffusers"), both, models, strict=True):
                with torch.no_grad():
                    yield from timing(f"{name}, {who} forward", call, sizes)
                yield from timing(f"{name}, {who} step", lambda c=call: c().float().square().mean().backward(), sizes)
                model.zero_grad()


def timing(name: str, call: Callable[[], Any], sizes: Sizes) -> Iterator[Row]:
    """Two rows: the median time, and the peak of memory where the device counts it."""
    ms, gib = measure(call, sizes)
    yield Row(name=f"{name}: time", value=ms, unit="ms")
    if gib is not None:
        yield Row(name=f"{name}: peak memory", value=gib, unit="GiB")


def measure(call: Callable[[], Any], sizes: Sizes) -> tuple[float, float | None]:
    """Median milliseconds after a warm-up, and the peak of allocated GiB on a GPU."""
    cuda = sizes.device == "cuda"
    call()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(sizes.repeats):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken), torch.cuda.max_memory_allocated() / 2**30 if cuda else None


def report(found: dict[str, str], rows: Sequence[Row]) -> str:
    """The summary as Markdown."""
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in found.items()), ""]
    lines += ["| what | value | limit | |", "|---|---|---|---|"]
    for row in rows:
        value = "" if row.value is None else f"{row.value:.3g} {row.unit}".strip()
        limit = "" if row.limit is None else f"{row.limit:g}"
        lines.append(f"| {row.name} | {value} | {limit} | {'FAILED' if row.failed else row.note} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run everything and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    chosen = parser.parse_args(arguments)
    if not chosen.dry_run and not torch.cuda.is_available():
        print("error: torch sees no GPU here; use --dry-run for a walk on the CPU", file=sys.stderr)
        return 2
    sizes = dry() if chosen.dry_run else full()
    found = environment(sizes.device)
    rows = [*attention_rows(sizes), *kernel_rows(sizes), *model_rows(sizes)]
    chosen.out.mkdir(parents=True, exist_ok=True)
    data = {"environment": found, "rows": [asdict(row) | {"failed": row.failed} for row in rows]}
    (chosen.out / "gpu.json").write_text(json.dumps(data, indent=2) + "\n")
    (chosen.out / "gpu.md").write_text(report(found, rows))
    print(report(found, rows))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
