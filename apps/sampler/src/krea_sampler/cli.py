"""The command line of krea-sample: flags into an order, errors into one sentence. What they do is in `compose`."""

import json
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from krea_sampler import explore, flags, picture, safety
from krea_sampler.console import bar, note, plain_errors, plain_usage, stderr, tell
from krea_sampler.delivery import Target, previewing, target
from krea_sampler.interrupt import at_once
from krea_sampler.order import Order, Weighted, parsed_size, weighted

if TYPE_CHECKING:
    from krea_sampler.compose import Setup

__all__ = ["app"]

EXAMPLES = """
Examples

krea-sample "a red apple, flat style"

krea-sample "a fox" "a rocket" --n 4 --grid

krea-sample "a fox in the snow" --model krea/Krea-2-Turbo --size 832x1248

krea-sample "a fox" --grid --guidance 1 --guidance 3.5 --n 4

krea-sample "a fox, oil painting" --image photo.jpg --strength 0.6

krea-sample --from-png a-fox-s0.png --seed 7

krea-sample show a-fox-s0.png

krea-sample serve --out kept
"""


class _DrawUnlessNamed(TyperGroup):
    """Where the first word names no command, `draw` is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            return super().parse_args(ctx, args)
        meant = get_close_matches(args[0], [*self.commands, "--help"], 1, 0.8) if len(args) == 1 else []
        if meant and not args[0].startswith("-"):
            note(f"{args[0]!r} is drawn; for the command write krea-sample {meant[0]}", "yellow")
        return super().parse_args(ctx, ["draw", *args])

    def invoke(self, ctx: Any) -> Any:
        with plain_usage():
            return super().invoke(ctx)


app = typer.Typer(cls=_DrawUnlessNamed, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What the flags came to. wishes: the prompts as typed; found: the parameters of `from_png`, empty without."""

    order: Order
    setup: "Setup"
    place: Target
    judge: safety.Safety | None
    wishes: Sequence[str]
    found: Mapping[str, Any]
    compare: Path | None
    preview: bool


@app.command(epilog=EXAMPLES)
def draw(
    prompts: flags.Prompts = None,
    seed: flags.Seed = None,
    n: flags.Count = None,
    size: flags.Size = None,
    width_px: flags.Width = None,
    height_px: flags.Height = None,
    side_px: flags.Side = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    negative: flags.Negative = None,
    from_png: flags.FromPng = None,
    model: flags.Model = None,
    encoder: flags.Encoder = None,
    autoencoder: flags.Autoencoder = None,
    preset: flags.Preset = None,
    dtype: flags.Dtype = None,
    device: flags.Device = "auto",
    quantise: flags.Quantise = None,
    blocks: flags.Blocks = "device",
    lora: flags.Lora = None,
    image: flags.Start = None,
    strength: flags.Strength = None,
    style: flags.Style = None,
    style_module: flags.StyleModule = None,
    expand: flags.Expand = None,
    out: flags.Out = Path("."),
    grid: flags.Grid = False,
    preview: flags.Preview = False,
    judge: flags.Judge = None,
) -> None:
    """Draw pictures. Each PNG carries what made it, and --from-png repeats it to the last bit.

    Other commands, with a --help of their own: serve (explore in the browser) and show (what a picture was made of).
    """
    with plain_errors():
        found = picture.parameters(from_png) if from_png else {}
        changes = (seed, n, size, width_px, height_px, side_px, steps, guidance, negative, preset, grid or None)
        _refuse_changes(from_png, found, changes)
        asked = _asked(found, prompts or [], expand, preset)
        plain: dict[str, Any] = {"seed": seed, "n": n, "steps": steps, "negative": negative, "grid": grid or None}
        order = asked.with_changes(**plain, **_sides(size, width_px, height_px, side_px), **_guidance(guidance or []))
        place = target(out, 1 if order.grid else len(order.singles))
        guard = safety.find(judge) if judge else None
        with at_once():
            from krea_sampler import compose  # not at the top: it loads torch, which --help can do without
        parts: dict[str, Any] = {"model": model, "encoder": encoder, "autoencoder": autoencoder, "device": device}
        parts |= {"quantise": quantise or found.get("quantise"), "blocks": blocks}
        led: dict[str, Any] = {"loras": _weighted(lora, 1.0), "styles": _weighted(style, flags.STYLE_STRENGTH)}
        led |= {"style_module": style_module, "image": _start(image, strength, found)}
        read: dict[str, Any] = {"preset": preset or found.get("preset"), "dtype": dtype or found.get("dtype")}
        setup = compose.Setup(**parts, **led, **read)
        kept = (setup.preset, setup.dtype, setup.quantise) == tuple(map(found.get, ("preset", "dtype", "quantise")))
        compare = from_png if order == asked and kept else None
        order, wishes = _expanded(order, expand, guard, found)
        job: dict[str, Any] = {"order": order, "setup": setup, "place": place, "judge": guard, "wishes": wishes}
        _work(_Job(**job, found=found, compare=compare, preview=preview))


def _refuse_changes(png: Path | None, found: Mapping[str, Any], changes: Sequence[object]) -> None:
    if found.get("format") == explore.FORMAT and any(one is not None for one in changes):
        raise ValueError(f"{png} mixes seeds or prompts and is drawn only as it is; leave out other flags")


def _asked(found: Mapping[str, Any], prompts: Sequence[str], expand: flags.Detail | None, preset: str | None) -> Order:
    """The order before the flags change parts of it: that of a picture, or the prompts alone."""
    if found and (prompts or expand):
        raise ValueError("--from-png brings its own prompt; leave out prompts and --expand, or --from-png")
    if found.get("format") == explore.FORMAT:
        mixture = explore.Mixture.of(found.get("mixture"))
        return Order(prompts=(mixture.leading_prompt,), seeds=(mixture.leading_seed,))  # for names and the judge
    asked = Order.of(found) if found else Order(prompts=tuple(prompts))
    return replace(asked, steps=None, guidance=None, guidances=()) if found and preset is not None else asked


def _expanded(
    order: Order, detail: flags.Detail | None, judge: safety.Safety | None, found: Mapping[str, Any]
) -> tuple[Order, list[str]]:
    """The order in more words if asked for, and the prompts as they were typed; all of them judged before drawing."""
    from krea_sampler import compose

    wishes = list(found.get("wishes") or [])
    safety.check_prompts(judge, [*order.prompts, order.negative])
    if detail is None:
        return order, wishes
    texts, notes = compose.expand(order.prompts, detail.value, order.seeds[0])
    for said in [*notes, *texts]:
        note(said)
    safety.check_prompts(judge, texts)
    return replace(order, prompts=tuple(texts)), list(order.prompts)


def _work(job: _Job) -> None:
    from krea_sampler import compose, drawing

    with stderr().status("loading the model"):
        artist = compose.artist(job.setup)
    if job.found:
        compose.check_same(artist, job.found)
        drawing.use_threads_of(job.found)
    stem = picture.stem((list(job.wishes) or job.order.prompts)[0], job.order.seeds[0])
    shown = previewing(job.place, stem, lambda path: note(f"preview: {path}")) if job.preview else nullcontext()
    with bar() as on_step, shown as on_preview:
        more: dict[str, Any] = {"on_preview": on_preview, "safety": job.judge}
        if job.found.get("format") == explore.FORMAT:
            from krea_sampler.serve.engine import repeat

            drawings = iter([repeat(artist, job.found, on_step, job.judge)])
        else:
            drawings = drawing.draw(artist, job.order, job.wishes, on_step, **more)
        for drawn in drawings:
            tell(str(job.place.put(drawn.image, drawn.parameters, drawn.stem)))
            if job.compare is not None:
                _compare(drawing.difference(job.compare, drawn.image), job.compare)


@app.command()
def serve(
    model: flags.Model = None,
    encoder: flags.Encoder = None,
    autoencoder: flags.Autoencoder = None,
    preset: flags.Preset = None,
    dtype: flags.Dtype = None,
    device: flags.Device = "auto",
    quantise: flags.Quantise = None,
    blocks: flags.Blocks = "device",
    lora: flags.Lora = None,
    style: flags.Style = None,
    style_module: flags.StyleModule = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures that are kept.")] = Path("."),
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: the network may draw.")] = "127.0.0.1",
    port: flags.Port = 7860,
    opened: Annotated[bool, typer.Option("--open/--no-open", help="Show the page in the browser.")] = True,
    judge: flags.Judge = None,
) -> None:
    """Explore in the browser: boards of variations, more like one, between two, toward other words."""
    with plain_errors():
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port}; use a number from 1 to 65535, or 0 for any that is free")
        picture.check_writable(out)  # before the long wait for the model
        guard = safety.find(judge) if judge else None
        with at_once():
            from krea_sampler import compose  # not at the top: they load torch, which --help can do without
            from krea_sampler import serve as pages
        parts: dict[str, Any] = {"model": model, "encoder": encoder, "autoencoder": autoencoder, "device": device}
        read: dict[str, Any] = {"preset": preset, "dtype": dtype, "quantise": quantise, "blocks": blocks}
        led: dict[str, Any] = {"loras": _weighted(lora, 1.0), "styles": _weighted(style, flags.STYLE_STRENGTH)}
        led["style_module"] = style_module
        setup = compose.Setup(**parts, **read, **led)
        with stderr().status("loading the model"):
            artist = compose.artist(setup)
        with pages.listening(artist, setup, out, host=host, port=port, safety=guard) as server:
            tell(pages.address(server))
            if opened:
                webbrowser.open(pages.address(server))
            pages.serve(server, note)


@app.command()
def show(png: Annotated[Path, typer.Argument(help="A picture of krea-sample.")]) -> None:
    """Print a picture's parameters as JSON."""
    with plain_errors():
        tell(json.dumps(picture.parameters(png), ensure_ascii=False, indent=2))


def _sides(size: str | None, width: int | None, height: int | None, side: int | None) -> dict[str, int | None]:
    if sum((size is not None, side is not None, (width, height) != (None, None))) > 1:
        raise ValueError("the size is given twice; use --size alone, or --width-px and --height-px, or --side-px")
    if size is not None:
        width, height = parsed_size(size)
    if width is not None and width == height:
        return {"side_px": width}
    return {"side_px": side, "width_px": width, "height_px": height}


def _guidance(values: Sequence[float]) -> dict[str, Any]:
    return {"guidance": values[0]} if len(values) == 1 else {"guidances": tuple(values) or None}


def _start(image: Path | None, strength: float | None, found: Mapping[str, Any]) -> Weighted | None:
    if image is None:
        if strength is not None:
            raise ValueError(f"--strength {strength} without a picture to start from; name one with --image")
        return None
    usual = (found.get("image") or {}).get("strength", flags.IMAGE_STRENGTH)
    return Weighted(path=image, strength=usual if strength is None else strength)


def _weighted(texts: Sequence[str] | None, usual: float) -> tuple[Weighted, ...]:
    return tuple(weighted(text, usual) for text in texts or [])


def _compare(levels: int, before: Path) -> None:
    if levels == 0:
        note(f"identical to {before}", "green")
    else:
        note(
            f"differs from {before} by up to {levels} of 255: another machine, device, torch or number of threads",
            "yellow",
        )
