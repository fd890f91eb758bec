"""The engine against the command's own drawing, and mixtures against what is computed without a batch."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from krea_model import sampling
from krea_model.interfaces import Conditioning
from krea_model.packing import unpack
from krea_model.testing import FakeTextEncoder, tiny_model
from krea_sampler import picture
from krea_sampler.compose import Artist, Setup, artist
from krea_sampler.drawing import draw
from krea_sampler.explore import Mixture, between, neighbours
from krea_sampler.order import Order
from krea_sampler.safety import Refused
from krea_sampler.serve.engine import Engine, Settings, mixed, mixed_noise, repeat
from PIL import Image

FOX = Mixture.pure("a red fox in the snow", 3)
WAY = between(FOX, Mixture.pure("a rocket", 11), 4)


@pytest.fixture
def painter(model: Path) -> Artist:
    return artist(Setup(model=model))


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_one_seed_and_one_prompt_are_what_the_command_draws(
    painter: Artist, guidance: float, size: tuple[int, int]
) -> None:
    order = Order(prompts=FOX.prompts, seeds=FOX.seeds, steps=4, guidance=guidance, negative="fog").sized(*size)
    (expected,) = draw(painter, order)
    engine = Engine(painter)
    found = engine.draw(FOX, engine.settle(4, guidance, *size, negative="fog"))
    assert found.image.size == size
    assert engine.recipe(found.parameters) == (FOX, engine.settle(4, guidance, *size, negative="fog"))
    assert found.image.tobytes() == expected.image.tobytes()
    assert found.parameters == expected.parameters
    assert found.stem == expected.stem


def test_every_picture_repeats_from_its_png(painter: Artist, tmp_path: Path) -> None:
    engine = Engine(painter)
    for number, mixture in enumerate([FOX, WAY[1], neighbours(WAY[2], 0.4, 1, seed=0)[0]]):
        drawing = engine.draw(mixture, engine.settle(guidance=0.7), origin={"kind": "more", "distance": 0.4})
        path = picture.save(picture.encode(drawing.image, drawing.parameters), tmp_path, f"{number}")
        again, settings = Engine(painter).recipe(picture.parameters(path))
        assert (again, settings) == (mixture, engine.settle(guidance=0.7))
        told = Mock()
        repeated = repeat(painter, picture.parameters(path), told)
        assert [one.args for one in told.call_args_list] == [(1, 3), (2, 3), (3, 3)]
        assert repeated.image.tobytes() == picture.pixels(path).tobytes()
        assert repeated.parameters == drawing.parameters
        assert ("origin" in drawing.parameters) == (number > 0)


def test_older_programs_refuse_a_mixture(painter: Artist) -> None:
    engine = Engine(painter)
    with pytest.raises(ValueError, match="format 'mixture/1'"):
        Order.of(engine.draw(WAY[1], engine.settle()).parameters)


def test_ways_differ_from_their_ends_and_from_each_other(painter: Artist) -> None:
    engine = Engine(painter)
    pictures = [engine.draw(one, engine.settle()).image.tobytes() for one in WAY]
    assert len(set(pictures)) == len(WAY)


def test_mixed_noise_is_standard_normal_and_correlated_as_its_weights_say() -> None:
    grids = [(48, 48)]
    (one,) = neighbours(between(FOX, Mixture.pure("a rocket", 11), 3)[1], 0.35, 1, seed=1)
    total = mixed_noise(one, grids, 64, 2)
    count = total.numel()
    assert abs(total.mean().item()) < 5 / count**0.5
    assert abs(total.var().item() - 1) < 5 * (2 / count) ** 0.5
    for seed, weight in zip(one.seeds, one.seed_weights, strict=True):
        part = sampling.noise([seed], grids, 64, patch=2)
        assert abs((total * part).mean().item() - weight) < 5 / count**0.5


def test_one_seed_is_its_noise_bit_for_bit() -> None:
    assert torch.equal(mixed_noise(FOX, [(4, 6)], 64, 2), sampling.noise([3], [(4, 6)], 64, patch=2))


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_mixed_velocity_is_the_mean_of_single_ones(guidance: float) -> None:
    model, text = tiny_model(seed=1), FakeTextEncoder()
    conds = [text([prompt]) for prompt in ("a fox", "a long rocket on a small moon", "snow")]
    uncond, weights, grids = text([""]), (0.2, 0.5, 0.3), [(3, 5)]
    x, t = sampling.noise([4], grids, model.config.token_features, patch=model.config.patch), torch.tensor([0.6])
    expected = sum((weight * model(x, t, cond, grids) for cond, weight in zip(conds, weights, strict=True)), x * 0)
    if guidance:
        expected = expected + guidance * (expected - model(x, t, uncond, grids))
    found = mixed(model, conds, weights, uncond, guidance)(x, t, conds[0], grids)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_wrapped_model_is_mixed_too() -> None:
    """A styled model is a velocity without a text stage of its own."""
    model, text = tiny_model(seed=1), FakeTextEncoder()
    conds, grids = [text([prompt]) for prompt in ("a fox", "two rockets")], [(2, 2)]
    x, t = sampling.noise([4], grids, model.config.token_features, patch=model.config.patch), torch.tensor([0.6])

    def wrapped(x: torch.Tensor, t: torch.Tensor, cond: Conditioning, grids: object) -> torch.Tensor:
        return model(x, t, cond, grids)  # pyright: ignore[reportArgumentType]

    bare = mixed(model, conds, (0.4, 0.6), None, 0.0)(x, t, conds[0], grids)
    torch.testing.assert_close(mixed(wrapped, conds, (0.4, 0.6), None, 0.0)(x, t, conds[0], grids), bare)


def test_previews_are_the_clean_picture_as_it_is_seen_then(painter: Artist) -> None:
    seen: list[Image.Image | None] = []
    steps = []
    engine = Engine(painter)
    settings = engine.settle(steps=5, width_px=32)

    def on_step(step: int, image: Callable[[], Image.Image | None]) -> None:
        steps.append(step)
        seen.append(image())

    final = engine.draw(WAY[1], settings, on_step).image
    shown = [one for one in seen if one is not None]
    assert steps == [1, 2, 3, 4, 5]
    assert shown[-1].tobytes() == final.tobytes()  # the last step goes to the clean estimate itself
    assert shown[0].tobytes() != final.tobytes()
    assert [one.size for one in shown] == [(32, 16)] * 5


def test_a_preview_changes_nothing(painter: Artist) -> None:
    engine = Engine(painter)
    seen: list[Image.Image | None] = []
    watched = engine.draw(WAY[1], engine.settle(), lambda _, image: seen.append(image()))
    assert watched.image.tobytes() == Engine(painter).draw(WAY[1], engine.settle()).image.tobytes()


def test_what_a_watcher_raises_ends_the_drawing(painter: Artist) -> None:
    done = []

    def on_step(step: int, _: object) -> None:
        done.append(step)
        if step == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        Engine(painter).draw(FOX, Engine(painter).settle(steps=9), on_step)
    assert done == [1, 2]


def test_prompts_are_encoded_once(painter: Artist) -> None:
    asked: list[str] = []

    class Counting:
        def __call__(self, prompts: list[str]) -> Conditioning:
            asked.extend(prompts)
            return FakeTextEncoder()(prompts)

    engine = Engine(replace(painter, bundle=replace(painter.bundle, text=Counting())))
    for mixture in WAY:
        engine.draw(mixture, engine.settle(steps=1))
    assert sorted(asked) == ["", "a red fox in the snow", "a rocket"]
    for number in range(80):
        engine.draw(Mixture.pure(f"prompt {number}", 0), engine.settle(steps=1))
    assert len(engine._encoded) == 64


def test_the_models_own_settings_are_the_usual_ones(painter: Artist) -> None:
    assert Engine(painter).settle() == Settings(steps=3, guidance=1.0, width_px=16, height_px=16)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "'0' steps"),
        ({"steps": 1001}, "'1001' steps"),
        ({"steps": True}, "'True' steps"),
        ({"guidance": -1.0}, "guidance '-1.0'"),
        ({"guidance": float("nan")}, "guidance 'nan'"),
        ({"width_px": 17}, "17x16 px: sides must be multiples of 8"),
        ({"height_px": 3}, "16x3 px: sides must be multiples of 8"),
        ({"width_px": 10**9}, "use at most 8192"),
        ({"width_px": 16.0}, "a side of '16.0' px; use a whole number"),
        ({"negative": "x" * 4001}, "at most 4000"),
    ],
)
def test_wrong_settings_are_one_sentence(painter: Artist, wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Engine(painter).settle(**wrong)  # pyright: ignore[reportArgumentType]


class Prudish:
    """Refuses prompts about rockets, and pictures of seed 11."""

    def __init__(self) -> None:
        self.seen: list[Image.Image] = []
        self.never: bytes = b""

    def check_prompt(self, prompt: str) -> str | None:
        return "no rockets" if "rocket" in prompt else None

    def check_image(self, image: Image.Image) -> str | None:
        self.seen.append(image)
        return "not this one" if image.tobytes() == self.never else None


def test_a_safety_classifier_sees_prompts_previews_and_pictures(painter: Artist) -> None:
    judge = Prudish()
    engine = Engine(painter, judge)
    with pytest.raises(Refused, match="no rockets"):
        engine.draw(WAY[1], engine.settle())
    with pytest.raises(Refused, match="no rockets"):
        engine.draw(FOX, engine.settle(negative="rockets"))
    with pytest.raises(Refused, match="no rockets"):
        engine.check(["a fox", "a rocket"])
    assert judge.seen == []
    final = engine.draw(FOX, engine.settle()).image
    assert [one.tobytes() for one in judge.seen] == [final.tobytes()]
    judge.never = final.tobytes()
    previews: list[Image.Image | None] = []
    with pytest.raises(Refused, match="this picture was refused: not this one"):
        engine.draw(FOX, engine.settle(), lambda _, image: previews.append(image()))
    assert [one is None for one in previews] == [False, False, True]  # the last step sees the picture itself


def test_what_the_model_says_about_a_prompt_is_kept(painter: Artist) -> None:
    class Talking:
        def __call__(self, prompts: list[str]) -> Conditioning:
            logging.getLogger("krea_model.text").warning("the prompt is cut after %d words", len(prompts[0]))
            return FakeTextEncoder()(prompts)

    engine = Engine(replace(painter, bundle=replace(painter.bundle, text=Talking())))
    engine.draw(FOX, engine.settle(guidance=0))
    assert engine.notes(FOX) == f"the prompt is cut after {len(FOX.prompts[0])} words"
    assert engine.notes(WAY[-1]) == ""


def test_a_picture_to_start_from_is_refused(painter: Artist) -> None:
    with pytest.raises(ValueError, match="leave out the picture to start from"):
        Engine(replace(painter, image=Image.new("RGB", (16, 16))))


def test_pictures_of_another_model_or_of_many_are_refused(
    painter: Artist, make_model: Callable[[int], Path], tmp_path: Path
) -> None:
    engine = Engine(painter)
    parameters = engine.draw(WAY[1], engine.settle()).parameters
    with pytest.raises(ValueError, match="was drawn by"):
        Engine(artist(Setup(model=make_model(1)))).recipe(parameters)
    (sheet,) = draw(painter, Order(prompts=("a fox",), seeds=(0, 1), grid=True))
    with pytest.raises(ValueError, match="several pictures"):
        engine.recipe(sheet.parameters)
    with pytest.raises(ValueError, match="drawn with --dtype bfloat16; start with the same"):
        engine.recipe({**parameters, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="mixture of type NoneType"):
        engine.recipe({**parameters, "mixture": None})
    with pytest.raises(ValueError, match="steps"):
        engine.recipe({**parameters, "steps": "many"})


def test_latents_of_a_mixture_have_the_asked_shape(painter: Artist) -> None:
    config = painter.bundle.model.config
    (latent,) = unpack(mixed_noise(WAY[1], [(2, 3)], config.token_features, config.patch), [(2, 3)], config.patch)
    assert latent.shape == (config.channels, 2 * config.patch, 3 * config.patch)
