"""How the two released checkpoints are sampled."""

from dataclasses import dataclass

__all__ = ["Preset", "preset", "raw", "turbo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """guidance: 0 is none; mu: shift of the times, None for the one that follows from the tokens (`flow.shift_mu`)."""

    steps: int
    guidance: float
    mu: float | None


def raw() -> Preset:
    """The undistilled checkpoint as its README samples it, up to 1024 x 1024; its code defaults to 28 steps at 4.5."""
    return Preset(steps=52, guidance=3.5, mu=None)


def turbo() -> Preset:
    """The distilled checkpoint: few steps, no guidance, the same shift at every size up to 2048 x 2048."""
    return Preset(steps=8, guidance=0.0, mu=1.15)


def preset(name: str) -> Preset:
    """The preset of that name, in any case; ValueError for another name."""
    known = {"raw": raw, "turbo": turbo}
    if str(name).lower() not in known:
        raise ValueError(f"there is no preset {name!r}; use {' or '.join(known)}")
    return known[name.lower()]()
