"""Draw one picture of a mixture: the only module of the page that touches the model.

A picture of one prompt and one seed is the picture that `krea-sample` draws, to the last bit and with the same
parameters. Every other picture carries its mixture, which is all that is needed to draw it again.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

import torch
from krea_model import sampling
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.pipeline import memory_explained
from PIL import Image
from torch import Tensor

from krea_sampler import picture
from krea_sampler.compose import Artist, check_same
from krea_sampler.drawing import Drawing
from krea_sampler.explore import FORMAT, MAX_PROMPT_LENGTH, Mixture
from krea_sampler.heard import hearing
from krea_sampler.order import FORMAT as ORDER_FORMAT
from krea_sampler.order import MAX_GUIDANCE, MAX_STEPS, Order, check_side, check_tokens
from krea_sampler.record import check_text, checked
from krea_sampler.safety import Safety, check_pictures, check_prompts

__all__ = ["Engine", "OnStep", "Settings", "mixed", "mixed_noise", "recipe", "repeat"]

REMEMBERED = 64  # encoded prompts
PREVIEW_PX = 384  # the longer side of a preview

OnStep = Callable[[int, Callable[[], Image.Image | None]], None]
"""Called with the number of steps done and a function that decodes the clean picture as the model sees it now.

The function returns None where a safety classifier does not let the preview be seen.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a picture is drawn; the meanings are those of `Order`."""

    steps: int
    guidance: float
    width_px: int
    height_px: int
    negative: str = ""

    def __post_init__(self) -> None:
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"{str(self.steps)[:40]!r} steps; use a whole number from 1 to {MAX_STEPS}")
        if type(self.guidance) not in (int, float) or not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance {str(self.guidance)[:40]!r}; use a number from 0 (none) to {MAX_GUIDANCE:g}")
        for side in (self.width_px, self.height_px):
            check_side(side)
        if type(self.negative) is not str or len(self.negative) > MAX_PROMPT_LENGTH:
            raise ValueError(f"what to lead away from must be text of at most {MAX_PROMPT_LENGTH} characters")
        check_text(self.negative)


class Engine:
    """An artist that draws mixtures, watched by a safety classifier if one is given.

    One thread at a time may draw; any thread may ask for the rest. Encoded prompts are remembered.
    """

    def __init__(self, artist: Artist, safety: Safety | None = None) -> None:
        if artist.image is not None:
            raise ValueError("mixtures are drawn from noise alone; leave out the picture to start from (--image)")
        self.artist = artist
        self._safety, self._judging = safety, threading.Lock()
        self._encoded: dict[str, tuple[Conditioning, str]] = {}

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.artist.marks.get("model", {}).get("name", "a model without a name"))

    @property
    def unit(self) -> int:
        """Sides of pictures are multiples of this many pixels."""
        return self.artist.bundle.unit

    def settle(
        self,
        steps: int | None = None,
        guidance: float | None = None,
        width_px: int | None = None,
        height_px: int | None = None,
        negative: str | None = None,
    ) -> Settings:
        """Settings with the model's defaults for None; raises ValueError for what it cannot draw."""
        usual = self.artist.bundle.defaults
        settings = Settings(
            steps=usual.steps if steps is None else steps,
            guidance=usual.guidance if guidance is None else guidance,
            width_px=usual.side_px if width_px is None else width_px,
            height_px=usual.side_px if height_px is None else height_px,
            negative=negative or "",
        )
        width, height = settings.width_px, settings.height_px
        check_tokens(width, height, self.artist.bundle.grids(1, width, height)[0])
        return replace(settings, guidance=float(settings.guidance))

    def check(self, prompts: Iterable[str]) -> None:
        """Raise safety.Refused for the first prompt that may not be drawn."""
        with self._judging:
            check_prompts(self._safety, prompts)

    def may_show(self, image: Image.Image) -> bool:
        """Whether the safety classifier lets a picture be seen."""
        with self._judging:
            return self._safety is None or self._safety.check_image(image) is None

    def draw(
        self,
        mixture: Mixture,
        settings: Settings,
        on_step: OnStep | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> Drawing:
        """The picture with its parameters; `origin` says how a mixed one was found and is kept in them.

        What `on_step` raises ends the drawing and reaches the caller. Raises safety.Refused for a prompt or a picture
        that is not allowed, MemoryError where it does not fit, RuntimeError for NaN.
        """
        self.check([*mixture.prompts, settings.negative])
        pipeline = self.artist.bundle
        grids = pipeline.grids(1, settings.width_px, settings.height_px)

        def after(step: int, clean: Tensor) -> None:
            def seen() -> Image.Image | None:
                image = _image(pipeline.pictures(clean, grids, PREVIEW_PX)[0])
                return image if self.may_show(image) else None

            if on_step is not None:
                on_step(step + 1, seen)

        with memory_explained(f"a picture of {settings.width_px}x{settings.height_px} px"), torch.inference_mode():
            tokens = self._sample(mixture, settings, grids, after)
            if not tokens.isfinite().all():
                raise RuntimeError("the picture came out as NaN; load the model in bfloat16 or float32")
            image = _image(pipeline.pictures(tokens, grids)[0])
        with self._judging:
            check_pictures(self._safety, [image], "this picture")
        return Drawing(
            image=image,
            parameters=self._parameters(mixture, settings, origin),
            stem=picture.stem(mixture.leading_prompt, mixture.leading_seed) + ("" if mixture.is_pure else "-mix"),
        )

    def recipe(self, parameters: Mapping[str, Any]) -> tuple[Mixture, Settings]:
        """What these parameters ask for; raises ValueError if they are damaged or ask for another model."""
        try:
            checked(dict(parameters))
        except ValueError as error:
            raise ValueError(f"the parameters of this picture are damaged: {error}") from error
        check_same(self.artist, parameters)
        for name in ("preset", "dtype", "quantise"):
            mine = self.artist.marks.get(name)
            theirs = parameters.get(name, mine)
            if theirs != mine:
                said = f"--{name} {theirs}" if theirs else f"no --{name}"
                raise ValueError(f"this picture was drawn with {said}; start with the same")
        mixture, wanted = recipe(parameters)
        return mixture, self.settle(**wanted)

    def notes(self, mixture: Mixture) -> str:
        """What the model said about these prompts when it read them, such as words that it has no room for."""
        found = [self._encoded[prompt][1] for prompt in mixture.prompts if prompt in self._encoded]
        return " ".join(note for note in found if note)

    def _sample(
        self, mixture: Mixture, settings: Settings, grids: Grids, after: Callable[[int, Tensor], None]
    ) -> Tensor:
        pipeline = self.artist.bundle
        config = pipeline.model.config
        conds = [self._encode(prompt) for prompt in mixture.prompts]
        uncond = self._encode(settings.negative) if settings.guidance else None
        single = len(conds) == 1
        model = pipeline.model
        return sampling.sample(
            model if single else mixed(model, conds, mixture.prompt_weights, uncond, settings.guidance),
            mixed_noise(mixture, grids, config.token_features, config.patch).to(pipeline.device),
            conds[0],
            grids,
            steps=settings.steps,
            mu=pipeline.defaults.mu,
            guidance=settings.guidance if single else 0.0,  # a mixed velocity is already guided
            uncond=uncond if single else None,
            on_step=after,
        )

    def _encode(self, prompt: str) -> Conditioning:
        if prompt not in self._encoded:
            while len(self._encoded) >= REMEMBERED:
                del self._encoded[next(iter(self._encoded))]
            said: list[str] = []
            with hearing(said.append):
                found = self.artist.bundle.text([prompt])
            cond = Conditioning(found.states.to(self.artist.bundle.device), found.lengths)
            self._encoded[prompt] = cond, " ".join(said)
        return self._encoded[prompt][0]

    def _parameters(self, mixture: Mixture, settings: Settings, origin: Mapping[str, Any] | None) -> dict[str, Any]:
        if mixture.is_pure:
            plain = {"steps": settings.steps, "guidance": settings.guidance, "negative": settings.negative}
            order = Order(prompts=mixture.prompts, seeds=mixture.seeds, **plain)
            asked = asdict(order.sized(settings.width_px, settings.height_px)) | {"format": ORDER_FORMAT}
        else:
            asked = asdict(settings) | {"format": FORMAT, "mixture": mixture.record(), "origin": dict(origin or {})}
        return asked | {
            "program": f"krea-sample {metadata.version('krea-sample')}",
            "wishes": [],
            **self.artist.marks,
            "torch": torch.__version__,  # the last bits of a picture depend on these three
            "device": self.artist.bundle.device.type,
            "threads": torch.get_num_threads(),
        }


def mixed_noise(mixture: Mixture, grids: Grids, features: int, patch: int) -> Tensor:
    """Noise `s f` of one image: `sum w noise(seed)` in fp32 and in the order of the mixture.

    With squares of weights that sum to 1 it is standard normal, and with a single seed it is that seed's noise.
    """
    parts = [sampling.noise([seed], grids, features, patch=patch) for seed in mixture.seeds]
    total = parts[0] * mixture.seed_weights[0]
    for part, weight in zip(parts[1:], mixture.seed_weights[1:], strict=True):
        total = total + part * weight
    return total


def mixed(
    model: Velocity, conds: list[Conditioning], weights: tuple[float, ...], uncond: Conditioning | None, guidance: float
) -> Velocity:
    """`v = sum w v(cond)`, guided by `v + guidance (v - v(uncond))`: a velocity that listens to several prompts.

    All of them go through the model in one flat batch; nothing is assumed about the lengths of their texts.
    """
    listened = [*conds, uncond] if guidance and uncond is not None else conds
    together = Conditioning(
        torch.cat([cond.states for cond in listened]), tuple(length for cond in listened for length in cond.lengths)
    )
    copies = len(listened)
    each = sampling.guided(model, together, None, 0.0)  # their text stage runs here, once, and not in each step

    def velocity(x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        found = each(torch.cat([x] * copies), torch.cat([t] * copies), cond, [*grids] * copies).chunk(copies)
        v = found[0] * weights[0]
        for part, weight in zip(found[1:], weights[1:], strict=False):  # the unguided one, last, has no weight
            v = v + part * weight
        return v + guidance * (v - found[-1]) if copies > len(conds) else v

    return velocity


def recipe(parameters: Mapping[str, Any]) -> tuple[Mixture, dict[str, Any]]:
    """The mixture and the settings in a picture's parameters; raises ValueError if there is not one of each."""
    names = ("steps", "guidance", "width_px", "height_px", "negative")
    if parameters.get("format") == FORMAT:
        return Mixture.of(parameters.get("mixture")), {name: parameters.get(name) for name in names}
    order = Order.of(parameters)
    if order.grid or len(order.singles) != 1:
        raise ValueError("a contact sheet holds several pictures; open one that was drawn by itself")
    (single,) = order.singles
    wanted = {name: getattr(single, name) for name in names}
    if single.side_px is not None:
        wanted |= {"width_px": single.side_px, "height_px": single.side_px}
    return Mixture.pure(*single.pictures[0]), wanted


def repeat(
    artist: Artist, parameters: Mapping[str, Any], on_step: Callable[[int, int], None], safety: Safety | None = None
) -> Drawing:
    """The picture with these parameters again, bit for bit; `on_step` gets the steps done and all steps.

    Raises ValueError if the parameters are damaged or another model's, and safety.Refused.
    """
    engine, origin = Engine(artist, safety), parameters.get("origin")
    mixture, settings = engine.recipe(parameters)
    kept = origin if isinstance(origin, dict) else {}
    return engine.draw(mixture, settings, lambda step, _: on_step(step, settings.steps), kept)


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())  # 3 H W -> H W 3
