"""Sizes of the model: one frozen dataclass, and named sizes as functions."""

from dataclasses import dataclass, fields

from krea_model.plain import is_number, is_whole

__all__ = ["Config", "base", "k2", "small", "tiny"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Sizes of a `mmdit.MMDiT`; ValueError for impossible ones. Names follow the released `SingleMMDiTConfig`."""

    features: int
    layers: int
    heads: int
    kvheads: int
    txtdim: int
    txtlayers: int
    txtheads: int
    txtkvheads: int
    channels: int = 16
    patch: int = 2
    multiplier: int = 4
    tdim: int = 256
    theta: float = 1000.0
    txtmultiplier: int = 4

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if name != "theta" and not is_whole(value, 1):
                raise ValueError(f"{name} is {value!r}; sizes are whole numbers of at least 1")
        if self.tdim % 2:
            raise ValueError(f"tdim is {self.tdim}; half of it are sines and half cosines: give an even number")
        if not is_number(self.theta, above=0):
            raise ValueError(f"theta is {self.theta!r}; give the base of the rotary angles, a number such as 1000.0")
        for width, heads, kvheads, name in (
            (self.features, self.heads, self.kvheads, "heads"),
            (self.txtdim, self.txtheads, self.txtkvheads, "txtheads"),
        ):
            if width % heads or heads % kvheads:
                raise ValueError(
                    f"width {width} with {name} {heads} and {kvheads} key-value heads: each must divide the one before"
                )
        if self.features // self.heads < 16 or (self.features // self.heads) % 4:
            raise ValueError(
                f"head size {self.features // self.heads} is too small for rotary axes; "
                "use features / heads of at least 16 and a multiple of 4"
            )

    @property
    def token_features(self) -> int:
        """Width of one image token: channels of a patch, channel slowest."""
        return self.channels * self.patch**2

    @property
    def mlp(self) -> int:
        """Hidden width of the SwiGLU in the main blocks."""
        return swiglu_width(self.features, self.multiplier)

    @property
    def txtmlp(self) -> int:
        """Hidden width of the SwiGLU in the text blocks."""
        return swiglu_width(self.txtdim, self.txtmultiplier)

    @property
    def axes(self) -> tuple[int, int, int]:
        """Rotary dimensions of the frame, row and column axes; they add up to the head size."""
        d = self.features // self.heads
        side = 6 * (d // 16)
        return (d - 2 * side, side, side)


def swiglu_width(width: int, multiplier: int) -> int:
    """The released rule: two thirds of the width times the multiplier, up to a multiple of 128."""
    return -(-(2 * width // 3) * multiplier // 128) * 128


def k2() -> Config:
    """The released Krea 2: 12,820,073,036 parameters."""
    return Config(features=6144, layers=28, heads=48, kvheads=12, txtdim=2560, txtlayers=12, txtheads=20, txtkvheads=20)


def base() -> Config:
    """About one billion parameters with the released text interface and head size."""
    return Config(features=1792, layers=20, heads=14, kvheads=7, txtdim=2560, txtlayers=12, txtheads=20, txtkvheads=20)


def small() -> Config:
    """The demo's size: a few million parameters that two CPU cores can train."""
    return Config(
        features=256,
        layers=8,
        heads=4,
        kvheads=2,
        txtdim=128,
        txtlayers=4,
        txtheads=4,
        txtkvheads=4,
        channels=8,
    )


def tiny() -> Config:
    """For tests: two blocks, three taps, width 64 (the size of the reference's golden values)."""
    return Config(
        features=64,
        layers=2,
        heads=4,
        kvheads=2,
        txtdim=32,
        txtlayers=3,
        txtheads=2,
        txtkvheads=2,
        channels=4,
        tdim=8,
    )
