"""Our transformer against diffusers' with the same weights in one run: `python benchmarks/model.py [--json]`.

Pictures of 256 pixels (256 tokens each), fp32, forward and backward: prompts of 8 to 120 tokens, which diffusers pads
to 512 and masks, and prompts of 512. Then sampling through both pipelines, and how near our forward pass comes to the
rate of a large matrix product. Ratios above 1 mean that we are faster. Runs alternate; the median of
their ratios counts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from krea_model.configs import Config
from krea_model.flow import shift_mu
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.sampling import noise, sample
from krea_model.sizes import diffusers_config
from krea_model.testing import fill
from krea_train.watch import forward_flops
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CONFIG = Config(
    features=640, layers=10, heads=10, kvheads=5, txtdim=256, txtlayers=12, txtheads=4, txtkvheads=4, channels=16
)
MIXED, WINDOW, SIDE = (8, 24, 60, 120), 512, 16
PRODUCT, PRODUCTS = 3072, 8  # side of the matrices whose products set the rate, and how many make one measurement
Call = Callable[[], Any]


def pair(config: Config) -> tuple[MMDiT, Any]:
    """Both models with the same random weights."""
    ours = MMDiT(config)
    fill(ours)
    theirs = Krea2Transformer2DModel(**{k: v for k, v in diffusers_config(config).items() if not k.startswith("_")})
    shapes = {name: p.shape for name, p in theirs.named_parameters()}
    state = {to_diffusers(name): p.detach() for name, p in ours.state_dict().items()}
    theirs.load_state_dict({name: p.reshape(shapes[name]).clone() for name, p in state.items()})
    return ours.eval(), theirs.eval()


def conditioning(config: Config, lengths: Sequence[int], seed: int = 1) -> Conditioning:
    """Normal numbers in the shape of text states."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(sum(lengths), config.txtlayers, config.txtdim, generator=generator)
    return Conditioning(states, tuple(lengths))


def padded(cond: Conditioning, length: int) -> tuple[Tensor, Tensor | None]:
    """States `b length k f` and their mask, None where nothing is padding."""
    rows = pad_sequence(list(cond.states.split(list(cond.lengths))), batch_first=True)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, length - rows.shape[1]))
    mask = torch.arange(length) < torch.tensor(cond.lengths)[:, None]
    return rows, None if mask.all() else mask


def steps(ours: MMDiT, theirs: Any, lengths: Sequence[int], *, backward: bool = True) -> tuple[Call, Call]:
    """Forward and backward of the same batch, through both models."""
    config, cond, count = ours.config, conditioning(ours.config, lengths), len(lengths)
    x = torch.randn(count, SIDE**2, config.token_features, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(0.1, 0.9, count)
    states, mask = padded(cond, WINDOW)
    places = torch.zeros(WINDOW + SIDE**2, 3)
    places[WINDOW:, 1] = torch.arange(SIDE).repeat_interleave(SIDE)
    places[WINDOW:, 2] = torch.arange(SIDE).repeat(SIDE)
    grids = [(SIDE, SIDE)] * count

    def mine() -> Tensor:
        return ours(x.flatten(0, 1), t, cond, grids)

    def other() -> Tensor:
        return theirs(x, states, t, places, mask, return_dict=False)[0].flatten(0, 1)

    with torch.no_grad():
        worst = float((mine() - other()).abs().max())
    if worst > 1e-4:
        raise RuntimeError(f"outputs differ by {worst}; a comparison of speed would mean nothing")
    if not backward:
        return mine, other
    return lambda: mine().square().mean().backward(), lambda: other().square().mean().backward()


def samplers(ours: MMDiT, theirs: Any, lengths: Sequence[int]) -> tuple[Call, Call]:
    """Four steps with guidance, from embeddings to latents, through both pipelines."""
    vae = AutoencoderKLQwenImage(base_dim=24, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
    )
    absent: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    pipeline = Krea2Pipeline(**absent, scheduler=scheduler, vae=vae, transformer=theirs, is_distilled=False)
    pipeline.set_progress_bar_config(disable=True)
    cond, empty = conditioning(ours.config, lengths), conditioning(ours.config, [9] * len(lengths), 3)
    grids = [(SIDE, SIDE)] * len(lengths)
    start = noise(range(len(lengths)), grids, ours.config.token_features)
    given: dict[str, Any] = {"height": 16 * SIDE, "width": 16 * SIDE, "num_inference_steps": 4, "guidance_scale": 3.0}
    for name, one in (("prompt", cond), ("negative_prompt", empty)):
        given[f"{name}_embeds"], given[f"{name}_embeds_mask"] = padded(one, WINDOW)
    mu = shift_mu(SIDE**2)
    return (
        lambda: sample(ours, start, cond, grids, steps=4, mu=mu, guidance=3.0, uncond=empty),
        lambda: pipeline(**given, output_type="latent"),
    )


def compared(mine: Call, other: Call, repeats: int) -> tuple[float, float, float]:
    """Median seconds of both calls, and the median over the rounds of other / mine.

    They take turns, after one round that does not count. A ratio is formed inside its round, so that a machine which
    is faster or slower for a while weighs on both alike.
    """
    rounds = []
    for number in range(repeats + 1):
        taken = (seconds(mine), seconds(other))
        if number:
            rounds.append(taken)
    ours, theirs = zip(*rounds, strict=True)
    ratio = statistics.median(b / a for a, b in rounds)
    return statistics.median(ours), statistics.median(theirs), ratio


def seconds(call: Call) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(repeats: int) -> dict[str, float]:
    """The four figures."""
    ours, theirs = pair(CONFIG)
    figures = {}
    for name, lengths in (("mixed", MIXED), ("full", (WINDOW,) * 4)):
        mine, other, ratio = compared(*steps(ours, theirs, lengths), repeats)
        print(f"{name} prompts, forward and backward: ours {mine:.2f} s, diffusers {other:.2f} s", flush=True)
        figures[f"{name}_prompts_vs_diffusers"] = ratio
    mine, other, ratio = compared(*samplers(ours, theirs, MIXED), repeats)
    print(f"sampling, 4 steps with guidance: ours {mine:.2f} s, diffusers {other:.2f} s", flush=True)
    figures["sampling_vs_diffusers"] = ratio
    return figures | {"matmul_fraction": matmul_fraction(ours, theirs, repeats)}


def matmul_fraction(ours: MMDiT, theirs: Any, repeats: int) -> float:
    """FLOP/s of our forward pass with full prompts over those of products that take about as long."""
    a, b = torch.randn(2, PRODUCT, PRODUCT).unbind()
    forward, _ = steps(ours, theirs, (WINDOW,) * 4, backward=False)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b)

    work, peak = forward_flops(CONFIG, [(SIDE, SIDE)] * 4, (WINDOW,) * 4), PRODUCTS * 2 * PRODUCT**3
    with torch.no_grad():
        mine, product, ratio = compared(forward, products, repeats)
    print(f"forward: {work / mine / 1e9:.0f} GFLOP/s, matrix product: {peak / product / 1e9:.0f} GFLOP/s", flush=True)
    return ratio * work / peak


def main() -> None:
    """Print the figures, as one JSON object in the last line if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = measured(options.repeats)
    if options.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    else:
        print("\n".join(f"{name}: {value:.2f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
