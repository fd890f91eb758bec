"""What is no batch of a model, no seed, no number or no device is said in one sentence: value, rule, way out."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from krea_model import loading, offload, weights
from krea_model.ablations.variants import variant
from krea_model.configs import tiny
from krea_model.devices import place
from krea_model.interfaces import Conditioning
from krea_model.packing import pack, unpack
from krea_model.pipeline import Defaults, Pipeline
from krea_model.presets import preset
from krea_model.sampling import euler, guided, noise, sample
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model

ENCODER = FakeTextEncoder()
GRIDS = [(2, 3), (1, 4)]
X, T, COND = torch.randn(10, 16), torch.tensor([0.3, 0.8]), ENCODER(["a red cat", "sky"])

BATCHES = [
    ({"t": T[:1]}, r"times of shape \(1,\) for 2 images; give one number in \[0, 1\] for each"),
    ({"t": torch.rand(3)}, r"times of shape \(3,\) for 2 images"),
    ({"t": torch.tensor(0.5)}, r"times of shape \(\) for 2 images"),
    ({"t": T[:, None]}, r"times of shape \(2, 1\) .* floats of shape \(2,\)"),
    ({"t": 0.5}, r"times of 0\.5 for 2 images"),
    ({"t": torch.tensor([999, 500])}, "torch.int64 .*: diffusers' timesteps divided by 1000"),
    ({"grids": GRIDS[:1]}, "1 grids for prompts: 2; give a Conditioning and one grid for each"),
    ({"grids": [*GRIDS, (0, 0)]}, "3 grids for prompts: 2"),
    (
        {"grids": [(2, 3), (2, 4)]},
        r"image tokens of shape \(10, 16\) for grids of 14 tokens; give floats of \(14, 16\)",
    ),
    ({"grids": [(-2, -3), (1, 4)]}, r"a grid is \(-2, -3\); give the image's \(rows, columns\)"),
    ({"grids": [(2.0, 3), (1, 4)]}, r"a grid is \(2\.0, 3\)"),
    ({"grids": [(1, 2, 3), (1, 4)]}, r"a grid is \(1, 2, 3\)"),
    ({"grids": [6, 4]}, "a grid is 6"),
    ({"grids": torch.tensor(GRIDS)}, r"grids are shape \(2, 2\).*; give a list of \(rows, columns\)"),
    ({"x": X[:, :15]}, r"image tokens of shape \(10, 15\) for grids of 10 tokens; give floats of \(10, 16\)"),
    ({"x": X[None]}, r"image tokens of shape \(1, 10, 16\)"),
    ({"x": X[:9]}, r"image tokens of shape \(9, 16\)"),
    ({"cond": COND.states}, "2 grids for prompts: Tensor; give a Conditioning"),
    ({"cond": ENCODER(["sky"])}, "2 grids for prompts: 1"),
    ({"cond": FakeTextEncoder(taps=2)(["a", "b"])}, r"text states of shape \(4, 2, 32\); .* \(tokens, 3, 32\)"),
    ({"cond": FakeTextEncoder(width=31)(["a", "b"])}, r"text states of shape \(4, 3, 31\); .* \(tokens, 3, 32\)"),
    ({"text": torch.zeros(3, 64)}, r"a text stage of shape \(3, 64\); give floats of \(6, 64\)"),
    ({"text": torch.zeros(6, 32)}, r"a text stage of shape \(6, 32\); give floats of \(6, 64\)"),
    ({"text": torch.zeros(6, 64).long()}, r"a text stage of shape \(6, 64\) in torch\.int64; give floats"),
    ({"x": X.byte()}, r"image tokens of shape \(10, 16\) in torch\.uint8 for grids of 10 tokens; give floats"),
    ({"x": X.to(torch.complex64)}, r"image tokens of shape \(10, 16\) in torch\.complex64"),
    ({"cond": Conditioning(COND.states.long(), COND.lengths)}, r"text states of shape .* in torch\.int64; .* floats"),
    ({"cond": Conditioning(COND.states.numpy(), COND.lengths)}, "text states of type ndarray"),  # pyright: ignore[reportArgumentType]
    ({"x": X[:0], "t": T[:0], "cond": Conditioning(COND.states[:0], ()), "grids": []}, "0 grids for prompts: 0"),
]


@pytest.mark.parametrize("name", ["", "time_tokens"])
@pytest.mark.parametrize(("wrong", "says"), BATCHES)
def test_what_is_no_batch_is_said_before_anything_is_computed(name: str, wrong: dict[str, Any], says: str) -> None:
    model = variant(name, tiny()) if name else tiny_model(0, tiny())
    given = {"x": X, "t": T, "cond": COND, "grids": GRIDS} | wrong
    with pytest.raises(ValueError, match=says) as caught, torch.no_grad():
        model(**given)
    assert "\n" not in str(caught.value)


def test_the_checks_read_no_number_of_a_tensor() -> None:
    with torch.device("meta"):
        model = tiny_model(0, tiny())
        cond = Conditioning(COND.states.to("meta"), COND.lengths)
        assert model(X.to("meta"), T.to("meta"), cond, GRIDS).shape == X.shape


def test_a_compiler_traces_the_checks() -> None:
    model = tiny_model(0, tiny())
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(X, T, COND, GRIDS), model(X, T, COND, GRIDS))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 1.5}, r"1\.5 sampling steps; give a whole number from 1"),
        ({"steps": "4"}, "'4' sampling steps"),
        ({"steps": 10**10}, "10000000000 sampling steps; give a whole number from 1 to 10000"),
        ({"mu": float("nan")}, "mu is nan; give the shift"),
        ({"mu": 1e4}, "mu is 10000.0"),
        ({"mu": ["a", "b"]}, "mu is 'a'"),
        ({"guidance": float("nan")}, "guidance is nan; give a number"),
        ({"guidance": "2"}, "guidance is '2'"),
        ({"guidance": 1.0, "uncond": ENCODER([""])}, "2 prompts .*, but 1 with .* in uncond"),
        ({"guidance": 1.0, "uncond": FakeTextEncoder(width=16)(["", ""])}, r"2 with \(2, 3, 16\) in uncond"),
    ],
)
def test_settings_of_a_sampler(wrong: dict[str, Any], says: str) -> None:
    given = {"steps": 2, "mu": 0.0, "uncond": ENCODER(["", ""])} | wrong
    with pytest.raises(ValueError, match=says):
        sample(tiny_model(0, tiny()), X, COND, GRIDS, **given)


NO_TIMES: list[Any] = [[999.0, 500.0, 0.0], [1.0, float("nan"), 0.0], [[1.0, 0.0], [1.0, -0.1]]]
NO_TIMES += [[np.float32(999), 0], ["1", "0"], torch.tensor([[1.0, 0.0]])]


@pytest.mark.parametrize("times", NO_TIMES)
def test_times_of_diffusers_are_told_apart(times: Any) -> None:
    velocity = guided(tiny_model(0, tiny()), COND, None, 0.0)
    with pytest.raises(ValueError, match=r"they run from 1 .noise. to 0 .image.: divide diffusers' timesteps by 1000"):
        euler(velocity, X, COND, GRIDS, times)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seeds": [-1]}, r"a seed is -1; give whole numbers from 0 to 2\*\*64 - 1"),
        ({"seeds": [1.5]}, r"a seed is 1\.5"),
        ({"seeds": ["a"]}, "a seed is 'a'"),
        ({"seeds": [True]}, "a seed is True"),
        ({"seeds": [2**64]}, "a seed is 18446744073709551616"),
        ({"seeds": 1}, "seeds are 1; give a list"),
        ({"seeds": [1, 2]}, "2 seeds for 1 pictures"),
        ({"patch": 0}, "16 features do not divide into patches of 0x0"),
        ({"features": 0}, "0 features do not divide"),
        ({"grids": [(-1, 1)]}, r"a grid is \(-1, 1\)"),
        ({"dtype": torch.int32}, "noise in torch.int32"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"drawn_on": "gpu"}, "device 'gpu' is unknown"),
    ],
)
def test_noise_of_what_is_no_seed_or_size(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        noise(**({"seeds": [1], "grids": [(1, 1)], "features": 16} | wrong))


def test_seeds_may_be_any_whole_numbers() -> None:
    want = noise([3, 2**64 - 1], [(1, 2)] * 2, 16)
    numbers: Any = np.array([3, 2**64 - 1], dtype=np.uint64)
    assert torch.equal(noise(numbers, [(1, 2)] * 2, 16), want)
    assert torch.equal(noise(range(3, 4), [(1, 2)], 16), want[:2])


def test_latents_and_tokens_that_are_none() -> None:
    with pytest.raises(ValueError, match="0 latents in patches of 2"):
        pack([])
    with pytest.raises(ValueError, match=r"a latent of shape \(2, 2\); give \(channels, height, width\)"):
        pack([torch.zeros(2, 2)])
    with pytest.raises(ValueError, match=r"tokens of shape \(5, 16\) for grids of 6 tokens in patches of 2"):
        unpack(torch.zeros(5, 16), [(2, 3)])
    with pytest.raises(ValueError, match="in patches of 3"):
        unpack(torch.zeros(6, 16), [(2, 3)], 3)


PICTURE = torch.zeros(3, 16, 16, dtype=torch.uint8)
DRAWS = [
    ({"seeds": [1.5]}, r"a seed is 1\.5; give whole numbers"),
    ({"seeds": [-1]}, "a seed is -1"),
    ({"seeds": 5}, "prompts .* and seeds 5; give lists with one seed per prompt"),
    ({"prompts": []}, "0 prompts and 1 seeds; give lists with one seed per prompt, at least one"),
    ({"prompts": None}, "prompts None and seeds"),
    ({"prompts": [1]}, "a prompt is 1; give text"),
    ({"prompts": [b"a"]}, "a prompt is b'a'; give text"),
    ({"prompts": ["\udcff"]}, "which holds half a character; decode its bytes as UTF-8"),
    ({"negative": None}, "the negative prompt is None; give text"),
    ({"steps": 0}, "0 sampling steps; give a whole number from 1"),
    ({"steps": 1.5}, r"1\.5 sampling steps"),
    ({"steps": "3"}, "'3' sampling steps"),
    ({"steps": True}, "True sampling steps"),
    ({"width_px": 16.0}, r"one of the widths is 16\.0; give pixels as whole numbers"),
    ({"height_px": "16"}, "one of the heights is '16'"),
    ({"width_px": ["16"]}, "one of the widths is '16'"),
    ({"width_px": 8 * 10**9}, "8000000000x16 px are too many; draw at most as many as 16384x16384 have"),
    ({"guidance": float("nan")}, "guidance nan and strength"),
    ({"guidance": "2"}, "guidance '2' and strength"),
    ({"guidance": [1.0]}, r"guidance \[1\.0\] and strength"),
    ({"strength": "0.5"}, r"strength '0\.5'; use a number, and more than 0 up to 1"),
    ({"image": 5}, "one of type int, no tensor, to start from; give one uint8 picture"),
    ({"image": [PICTURE.numpy()]}, "one of type ndarray, no tensor, to start from"),
]


@pytest.fixture
def pipeline() -> Pipeline:
    defaults = Defaults(side_px=16, steps=2, guidance=1.0, mu=None)
    return Pipeline(model=tiny_model(0), text=ENCODER, autoencoder=FakeAutoencoder(), defaults=defaults)


@pytest.mark.parametrize(("wrong", "says"), DRAWS)
def test_what_cannot_be_drawn(pipeline: Pipeline, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        pipeline.draw(**({"prompts": ["a"], "seeds": [1]} | wrong))
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_draw_the_same(pipeline: Pipeline) -> None:
    want = pipeline.draw(["a"], [3], width_px=24, steps=2, guidance=1.5)[0]
    numbers: dict[str, Any] = {"width_px": np.int64(24), "steps": np.int64(2), "guidance": np.float32(1.5)}
    seeds: Any = np.array([3])
    assert torch.equal(pipeline.draw(["a"], seeds, **numbers)[0], want)


@pytest.mark.parametrize("name", [5, None, "fast"])
def test_a_preset_that_there_is_not(pipeline: Pipeline, name: Any) -> None:
    opened: Any = loading.load
    for use in (preset, pipeline.with_preset, lambda one: opened("nowhere", preset=one or 0)):
        with pytest.raises(ValueError, match=r"there is no preset .*; use raw or turbo"):
            use(name)


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:x", None, 1.5, ["cpu"]])
def test_a_device_that_torch_does_not_know(tmp_path: Any, name: Any) -> None:
    weights.save(tmp_path / "a.safetensors", tiny_model(0).state_dict(), tiny_model(0).config)
    for use in (weights.load, offload.from_disk, loading.load):
        with pytest.raises(ValueError, match=r'device .* is unknown; use "cpu", "cuda", "cuda:1" or "mps"') as caught:
            use(tmp_path / "a.safetensors", device=name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "xpu", "hpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    code = f"from krea_model.devices import place; place('{name}')"
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=hidden, check=False)
    assert f'ValueError: device "{name}" is not there: torch' in ran.stderr
    assert 'use "cpu"' in ran.stderr


def test_a_number_beyond_the_last_device() -> None:
    assert place("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r'device "cuda:99" is not there: torch .* finds [0-9]+ of type cuda'):
        place("cuda:99")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, torch.float8_e4m3fn])
def test_a_type_that_nothing_computes_in(dtype: Any) -> None:
    for use in (weights.load, offload.from_disk, loading.load):
        with pytest.raises(ValueError, match=r"dtype is .*; give torch.bfloat16, torch.float16 or torch.float32"):
            use("nowhere", dtype=dtype)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tdim": 7}, "tdim is 7; half of it are sines and half cosines: give an even number"),
        *(
            ({name: value}, f"{name} is .*; sizes are whole numbers of at least 1")
            for name in ("features", "layers", "heads", "kvheads", "txtdim", "txtlayers", "txtheads", "txtkvheads")
            for value in (0, -2, "8", 8.0, None, True)
        ),
        *(
            ({name: 0}, f"{name} is 0; sizes are whole numbers of at least 1")
            for name in ("tdim", "channels", "patch", "multiplier", "txtmultiplier")
        ),
        *(({"theta": value}, "theta is .*; give the base") for value in (0, -1, float("nan"), "1000", None)),
        ({"heads": 3}, "width 64 with heads 3 and 2 key-value heads: each must divide the one before"),
        ({"kvheads": 3}, "width 64 with heads 4 and 3 key-value heads"),
        ({"txtdim": 31}, "width 31 with txtheads 2"),
        ({"heads": 8}, "head size 8 is too small for rotary axes"),
    ],
)
def test_impossible_sizes(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(tiny(), **wrong)
