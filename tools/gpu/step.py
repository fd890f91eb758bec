"""The whole transformer beside diffusers' on the same weights: difference, time, memory, and share of the peak."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.sizes import diffusers_config
from krea_train.watch import train_flops
from torch import Tensor, nn

from tools.gpu.clock import error, measure, product_rate, rated_peak
from tools.gpu.rows import Row
from tools.gpu.sizes import Case, Sizes

__all__ = ["BAR", "model_rows"]

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
BAR = 1.3  # times as fast as diffusers, compiled
COMPILING = 120  # seconds that compiling a model may take
Call = Callable[[], Tensor]


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


def calls(sizes: Sizes, case: Case, dtype: torch.dtype, models: tuple[Any, Any]) -> tuple[Call, Call]:
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
    return (
        lambda: ours(x.flatten(0, 1), t, cond, [(case.side, case.side)] * count),
        lambda: theirs(**given, return_dict=False)[0].flatten(0, 1),
    )


def model_rows(sizes: Sizes) -> Iterator[Row]:
    """Differences in both precisions; then, in bf16, times eager and compiled."""
    for dtype in LIMITS:
        models = pair(sizes, dtype)
        for case in sizes.cases:
            name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
            if not sizes.room():
                yield Row(name=name, value=None, note="skipped: out of time")
                continue
            mine, other = calls(sizes, case, dtype, models)
            with torch.no_grad():
                found = error(mine(), other())
            yield Row(name=f"{name}: difference", value=found, limit=LIMITS[dtype])
            if dtype is torch.bfloat16:
                yield from speed_rows(sizes, case, dtype, models)
        del models


def speed_rows(sizes: Sizes, case: Case, dtype: torch.dtype, models: tuple[MMDiT, nn.Module]) -> Iterator[Row]:
    """Forward and step of both models, eager and (where the case asks for it) compiled; ratios; share of the peak."""
    name, names = f"{case.name}, {str(dtype).removeprefix('torch.')}", ("krea_model", "diffusers")
    steps: dict[str, float] = {}
    for who, call, model in zip(names, calls(sizes, case, dtype, models), models, strict=True):
        with torch.no_grad():
            yield from timing(f"{name}, {who} forward", call, sizes)
        yield from timed_step(f"{name}, {who}", call, model, sizes, steps)
    if case.compiled:
        compiled: Any = tuple(torch.compile(model, backend=sizes.compiler) for model in models)
        for who, call, model in zip(names, calls(sizes, case, dtype, compiled), models, strict=True):
            if not sizes.room(COMPILING):
                yield Row(name=f"{name}, {who} compiled step", value=None, note="skipped: out of time")
                continue
            yield from timed_step(f"{name}, {who} compiled", call, model, sizes, steps)
    yield from ratio_rows(name, steps, sizes)
    yield from share_rows(sizes, case, f"{name}, krea_model", best(steps, f"{name}, krea_model"))


def timed_step(name: str, call: Call, model: nn.Module, sizes: Sizes, steps: dict[str, float]) -> Iterator[Row]:
    """Time and memory of forward with backward, kept in `steps`; a refusal of a compiler becomes a remark."""
    try:
        rows = list(timing(f"{name} step", lambda: call().float().square().mean().backward(), sizes))
    except RuntimeError as refusal:  # compilers and memory say no in many ways, all of them this one
        yield Row(name=f"{name} step", value=None, note=str(refusal).strip().split("\n")[0][:120].replace("|", "/"))
    else:
        steps[name] = rows[0].value or float("nan")
        yield from rows
    model.zero_grad()


def best(steps: dict[str, float], name: str) -> float | None:
    """The faster of a model's eager and its compiled step, in milliseconds."""
    return min((ms for who, ms in steps.items() if who.startswith(name)), default=None)


def ratio_rows(name: str, steps: dict[str, float], sizes: Sizes) -> Iterator[Row]:
    """How many times as fast our faster step is as each of theirs; only the compiled one has a bar."""
    mine = best(steps, f"{name}, krea_model")
    for other, bar in (("diffusers", None), ("diffusers compiled", BAR if sizes.device == "cuda" else None)):
        ms = steps.get(f"{name}, {other}")
        if mine and ms:
            yield Row(name=f"{name}, step: times as fast as {other}", value=ms / mine, least=bar)


def share_rows(sizes: Sizes, case: Case, name: str, ms: float | None) -> Iterator[Row]:
    """Operations of a step, counted without padding, over the rate of a large product and over the maker's figure."""
    if ms is None:
        return
    grids = [(case.side, case.side)] * len(case.texts)
    rate = train_flops(sizes.config, grids, case.texts) / (ms * 1e-3)
    yield Row(name=f"{name} step: rate", value=rate / 1e12, unit="TFLOP/s")
    yield Row(name=f"{name} step: share of a large product's rate", value=rate / product_rate(sizes))
    peak = rated_peak(torch.cuda.get_device_name()) if sizes.device == "cuda" else None
    note = "" if peak else "this device's rating is not known here"
    yield Row(name=f"{name} step: share of the rated peak (MFU)", value=rate / peak if peak else None, note=note)


def timing(name: str, call: Callable[[], Any], sizes: Sizes) -> Iterator[Row]:
    """Two rows: the median time, and the peak of memory where the device counts it."""
    ms, gib = measure(call, sizes)
    yield Row(name=f"{name}: time", value=ms, unit="ms")
    if gib is not None:
        yield Row(name=f"{name}: peak memory", value=gib, unit="GiB")
