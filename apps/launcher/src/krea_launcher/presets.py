"""How much the quickstart does: each preset is a function that returns all its numbers."""

from dataclasses import dataclass, replace

from krea_model.configs import Config
from krea_model.smallae import Sizes

__all__ = ["PRESETS", "Pairwise", "Preset", "Stage", "nano", "small", "smoke"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training stage: resolution, length, rates, and which captions it sees.

    lr_muon, lr: of the hidden matrices and of the rest. decay: last steps over which the rate falls to zero.
    caption_mix: shares of the caption lengths; drop: share of empty prompts, which guidance needs.
    """

    name: str
    side_px: int
    steps: int
    lr_muon: float = 0.01
    lr: float = 2e-3
    warmup: int = 20
    decay: int = 0
    caption_mix: tuple[tuple[str, float], ...] = (("long", 0.1), ("medium", 0.75), ("short", 0.15))
    drop: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairwise:
    """The stage that learns from pairs of pictures of one prompt, at the size of the stage before it.

    prompts: how many are drawn; group: pictures of each. batch: pairs in a step. beta: sharpness of the comparison;
    anchor: weight of flow matching on the winners.
    """

    name: str = "preference"
    prompts: int = 128
    group: int = 4
    steps: int = 80
    batch: int = 32
    lr: float = 1e-4
    beta: float = 40.0
    anchor: float = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Everything that decides what a quickstart does, besides its seed.

    concepts: how many of the corpus's concepts are trained on, in all styles. rows: how many pictures are curated,
    those of the concepts among them. evals: how many training pairs are drawn and ranked at the end.
    """

    name: str
    concepts: int
    rows: int
    config: Config
    autoencoder: Sizes
    autoencoder_steps: int
    stages: tuple[Stage, ...]
    preference: Pairwise = Pairwise()
    batch: int = 64
    evals: int = 96
    guidance: float = 2.0
    sample_steps: int = 20
    minutes: float = 9.0  # on two cores, for the first estimate


def demo_config(*, features: int, layers: int, heads: int) -> Config:
    """The released architecture in a small size: 16 pixels to a token as in the released model, here 4 by the
    autoencoder and 4 by the patch; text states reduced to 96 numbers, since the fusion stage would cost the most.
    """
    return Config(
        features=features, layers=layers, heads=heads, kvheads=heads // 2,
        txtdim=96, txtlayers=3, txtheads=2, txtkvheads=2, channels=Sizes().channels, patch=4,
    )  # fmt: skip


def nano() -> Preset:
    """Under ten minutes on two cores."""
    return Preset(
        name="nano",
        concepts=160,
        rows=2000,
        config=demo_config(features=256, layers=6, heads=4),
        autoencoder=Sizes(),
        autoencoder_steps=1000,
        stages=(
            Stage(name="pretrain-48", side_px=48, steps=300),
            Stage(name="pretrain-64", side_px=64, steps=500),
            Stage(
                name="sft",
                side_px=64,
                steps=500,
                decay=500,
                warmup=0,
                caption_mix=(("long", 0.1), ("medium", 0.8), ("short", 0.1)),
            ),
        ),
    )


def small() -> Preset:
    """Three quarters of an hour on two cores: the recipe of the checkpoint that ships with the sampler."""
    first, second, third = nano().stages
    return replace(
        nano(),
        name="small",
        concepts=600,
        rows=10_000,
        config=demo_config(features=256, layers=8, heads=4),
        autoencoder_steps=4000,
        stages=(
            replace(first, steps=1200),
            replace(second, steps=2800),
            replace(third, steps=2000, decay=2000),
        ),
        preference=Pairwise(prompts=384, steps=200),
        evals=256,
        minutes=46.0,
    )


def smoke() -> Preset:
    """A minute and no beauty: every stage runs, for tests."""
    first, second, third = nano().stages
    return replace(
        nano(),
        name="smoke",
        concepts=6,
        rows=40,
        config=replace(demo_config(features=64, layers=2, heads=2), txtdim=32),
        autoencoder=Sizes(width=16, depth=1),
        autoencoder_steps=30,
        stages=(
            replace(first, steps=12, warmup=2),
            replace(second, steps=8, warmup=2),
            replace(third, steps=6, decay=6),
        ),
        preference=Pairwise(prompts=4, group=2, steps=4, batch=2),
        batch=8,
        evals=6,
        sample_steps=3,
        minutes=1.0,
    )


PRESETS = {"nano": nano, "small": small, "smoke": smoke}
