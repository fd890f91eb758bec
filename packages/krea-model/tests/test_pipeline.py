"""A folder in the released layout draws what diffusers draws from it, batches mix sizes, errors are one sentence."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import krea_model
import numpy as np
import pytest
import torch
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from krea_model.pipeline import Defaults, Pipeline
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model
from krea_model.testing_folder import tiny_folder
from krea_model.text import PREFIX, SUFFIX


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("released") / "Krea-2-Tiny")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Pipeline:
    return krea_model.load(folder, dtype=torch.float32)


@pytest.fixture
def fake() -> Pipeline:
    defaults = Defaults(side_px=16, steps=3, guidance=1.0, mu=None)
    return Pipeline(model=tiny_model(0), text=FakeTextEncoder(), autoencoder=FakeAutoencoder(), defaults=defaults)


@pytest.mark.parametrize(("guidance", "distilled"), [(3.0, False), (0.0, True)])
def test_prompts_become_the_pictures_of_diffusers(tmp_path: Path, guidance: float, distilled: bool) -> None:
    folder = tiny_folder(tmp_path / "model", distilled=distilled)
    theirs: Any = Krea2Pipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    theirs.prompt_template_encode_start_idx = len(theirs.tokenizer(PREFIX).input_ids)
    theirs.prompt_template_encode_num_suffix_tokens = len(theirs.tokenizer(SUFFIX).input_ids)
    seed = torch.Generator().manual_seed(5)
    options = {"height": 40, "width": 56, "num_inference_steps": 4, "guidance_scale": guidance, "generator": seed}
    want = theirs("a red cat in the snow", output_type="np", max_sequence_length=64, **options).images[0]
    ours = krea_model.load(folder, dtype=torch.float32)
    got = ours.draw(["a red cat in the snow"], [5], width_px=56, height_px=40, steps=4, guidance=guidance)[0]
    assert got.shape == (3, 40, 56)
    assert got.dtype == torch.uint8
    off = np.abs(got.permute(1, 2, 0).numpy() / 255 - want)
    assert off.max() <= 0.5 / 255 + 1e-4  # a rounding to 8 bits


def test_presets_come_from_the_mark_in_the_index(folder: Path, loaded: Pipeline, tmp_path: Path) -> None:
    turbo = krea_model.load(tiny_folder(tmp_path / "some name", distilled=True), dtype=torch.float32)
    assert (loaded.defaults.steps, loaded.defaults.guidance, loaded.defaults.mu) == (52, 3.5, None)
    assert (turbo.defaults.steps, turbo.defaults.guidance, turbo.defaults.mu) == (8, 0.0, 1.15)
    assert loaded.defaults.side_px == turbo.defaults.side_px == 1024
    assert krea_model.load(folder, preset="Turbo", dtype=torch.float32).defaults == turbo.defaults
    with pytest.raises(ValueError, match="there is no preset 'quick'"):
        krea_model.load(folder, preset="quick")


def test_mixed_sizes_in_one_batch_are_each_as_alone(loaded: Pipeline) -> None:
    prompts, seeds, widths, heights = ["a red cat", "the sea at night", ""], [3, 4, 5], [32, 64, 16], [32, 24, 48]
    options: dict[str, Any] = {"steps": 3, "guidance": 1.5, "negative": "snow"}
    together = loaded.draw(prompts, seeds, width_px=widths, height_px=heights, **options)
    for prompt, seed, width, height, picture in zip(prompts, seeds, widths, heights, together, strict=True):
        (alone,) = loaded.draw([prompt], [seed], width_px=width, height_px=height, **options)
        assert picture.shape == (3, height, width)
        assert (picture.int() - alone.int()).abs().max() <= 1  # a rounding of the last bit may cross a level


def test_settings_act(fake: Pipeline) -> None:
    (usual,) = fake.draw(["a fox"], [1])
    assert usual.shape == (3, 16, 16)
    assert torch.equal(usual, fake.draw(["a fox"], [1], steps=3, guidance=1.0, negative="")[0])
    changed: list[dict[str, Any]] = [{"steps": 4}, {"guidance": 2.0}, {"guidance": 0.0}, {"negative": "grey"}]
    for change in changed:
        assert not torch.equal(usual, fake.draw(["a fox"], [1], **change)[0])
    assert not torch.equal(usual, fake.with_preset("turbo").draw(["a fox"], [1], steps=3, guidance=1.0)[0])
    assert fake.draw(["a fox"], [1], height_px=8)[0].shape == (3, 8, 16)


def test_image_to_image_keeps_more_of_the_picture_the_weaker_it_is(fake: Pipeline) -> None:
    picture = torch.randint(0, 256, (3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    far = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        (drawn,) = fake.draw(["a fox"], [1], steps=10, image=picture, strength=strength)
        assert drawn.shape == picture.shape
        far.append((drawn.float() - picture.float()).abs().mean().item())
    assert far[0] < far[1] < far[3]
    assert far[0] < 30
    whole = fake.draw(["a fox"], [1], steps=10, width_px=24, height_px=16)[0]
    assert torch.equal(fake.draw(["a fox"], [1], steps=10, image=picture, strength=1.0)[0], whole)
    seen = []
    fake.draw(["a fox"], [1], steps=10, image=[picture], strength=0.3, on_step=lambda step, _: seen.append(step))
    assert seen == [0, 1, 2]


def test_estimates_become_previews(fake: Pipeline) -> None:
    seen = []
    (last,) = fake.draw(["a fox"], [1], steps=4, on_step=lambda step, tokens: seen.append(tokens))
    grids = fake.grids(1)
    assert len(seen) == 4
    assert torch.equal(fake.pictures(seen[-1], grids)[0], last)  # the last step goes to the estimate itself
    assert fake.pictures(seen[0], grids, most_px=8)[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"width_px": 20, "height_px": 16},
            "20x16 px: sides must be multiples of 8; the nearest widths are 16 and 24$",
        ),
        (
            {"width_px": 1, "height_px": 17},
            "1x17 px: .* the nearest widths are 8 and 16, the nearest heights are 16 and",
        ),
        ({"width_px": [16, 16]}, "2 widths for 1 pictures"),
        ({"steps": 0}, "0 sampling steps"),
        ({"image": torch.zeros(3, 16, 16), "strength": 0.5}, "give one uint8 picture"),
        ({"image": [torch.zeros(3, 16, 16, dtype=torch.uint8)] * 2}, "2 pictures to start from"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.uint8), "width_px": 24}, "does not have the size to draw"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.uint8), "strength": 0.0}, "strength 0.0"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(fake: Pipeline, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        fake.draw(["a fox"], [1], **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("prompts", "seeds"), [("a", [1]), (["a"], [1, 2]), ([], [])])
def test_prompts_and_seeds_that_are_no_lists_of_one_length(fake: Pipeline, prompts: Any, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="give lists with one seed per prompt"):
        fake.draw(prompts, seeds)


def test_nan_is_an_error_and_no_black_picture(fake: Pipeline) -> None:
    broken = tiny_model(0)
    with torch.no_grad():
        broken.last.linear.bias[3] = float("nan")
    with pytest.raises(RuntimeError, match="16x16 px came out as NaN; load the model in bfloat16"):
        replace(fake, model=broken).draw(["a fox"], [1])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_is_explained(fake: Pipeline, error: BaseException) -> None:
    def greedy(prompts: object) -> Any:
        raise error

    with pytest.raises(MemoryError, match=r"not enough memory for 2 pictures of 16x16 px; draw smaller or fewer"):
        replace(fake, text=greedy).draw(["a fox", "a cat"], [1, 2])


def test_other_errors_keep_their_words(fake: Pipeline) -> None:
    def failing(prompts: object) -> Any:
        raise error

    for error in (RuntimeError("the power went"), OSError(errno.EIO, "the disk went")):
        with pytest.raises(type(error), match="went"):
            replace(fake, text=failing).draw(["a fox"], [1])
