from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from krea_model.autoencoder import QwenImageAutoencoder
from krea_model.configs import tiny
from krea_model.flow import shift_mu, timesteps
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.packing import pack, unpack
from krea_model.presets import preset
from krea_model.sampling import euler, guided, noise, sample, schedule, sde, start
from krea_model.testing import FakeTextEncoder, tiny_model

ENCODER = FakeTextEncoder()


def test_noise_of_an_image_depends_on_its_seed_and_size_alone():
    grids = [(2, 3), (1, 4), (2, 3)]
    together = noise([7, 8, 7], grids, 8).split([6, 4, 6])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], noise([8], [(1, 4)], 8))
    assert not torch.equal(together[0][:4], together[1])
    assert together[0].std() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_i_of_an_official_batch_has_the_noise_of_seed_plus_i(dtype):
    drawn = [torch.Generator().manual_seed(40 + i) for i in range(3)]
    official = [torch.randn(1, 16, 10, 14, generator=one, dtype=dtype) for one in drawn]
    got = noise([40, 41, 42], [(5, 7)] * 3, 64, dtype=dtype)
    assert torch.equal(got, pack(torch.cat(official).float())[0])
    theirs = randn_tensor((3, 16, 10, 14), [torch.Generator().manual_seed(40 + i) for i in range(3)], dtype=dtype)
    assert torch.equal(got, pack(theirs.float())[0])
    assert torch.equal(noise([40], [(5, 7)], 64), noise([40], [(5, 7)], 64, dtype=dtype)) == (dtype == torch.float32)


def test_features_that_are_no_patches_are_refused():
    with pytest.raises(ValueError, match="6 features do not divide into patches of 2x2"):
        noise([0], [(1, 1)], 6)


def test_training_goes_on_after_sampling_the_same_lengths():
    model, cond, grids = tiny_model(0), ENCODER(["a red cat", "sky"]), [(2, 3), (3, 1)]
    x = noise([1, 2], grids, 192)
    sample(model, x, cond, grids, steps=1, mu=0.0)
    model(x, torch.tensor([0.5, 0.7]), cond, grids).sum().backward()
    assert model.first.weight.grad is not None


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny_model(0)
    cond, uncond, grids = ENCODER(["a red cat", "sky"]), ENCODER(["", ""]), [(2, 3), (3, 1)]
    options = {"steps": 3, "mu": 1.0, "guidance": 2.0}
    both = sample(model, noise([1, 2], grids, 192), cond, grids, uncond=uncond, **options)
    one = sample(model, noise([2], [(3, 1)], 192), ENCODER(["sky"]), [(3, 1)], uncond=ENCODER([""]), **options)
    assert (both[6:] - one).abs().max() < 1e-5 * both.abs().max()


class Plain:
    """A model that hides that it has a text stage."""

    def __init__(self, model: MMDiT) -> None:
        self.inner = model

    def __call__(self, x, t, cond, grids):
        return self.inner(x, t, cond, grids)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_text_stage_runs_once_and_nothing_changes(guidance, monkeypatch):
    model, cond, uncond, grids = tiny_model(0), ENCODER(["a red cat", "sky"]), ENCODER(["", ""]), [(2, 3), (3, 1)]
    options: dict[str, Any] = {"steps": 5, "mu": 1.0, "guidance": guidance, "uncond": uncond}
    x, calls, stage = noise([1, 2], grids, 192), [], MMDiT.text
    monkeypatch.setattr(MMDiT, "text", lambda self, cond: calls.append(cond.lengths) or stage(self, cond))
    each = sample(Plain(model), x, cond, grids, **options)
    assert len(calls) == 5
    once = sample(model, x, cond, grids, **options)
    assert calls[5:] == [(4, 2, 1, 1) if guidance else (4, 2)]
    assert torch.equal(once, each)


def test_sizes_mix_in_a_batch_and_each_has_its_own_times():
    model, prompts, grids = tiny_model(0), ["a red cat", "sky", "two words"], [(2, 3), (8, 12), (3, 1)]
    mu = [shift_mu(h * w) for h, w in grids]
    options: dict[str, Any] = {"steps": 4, "guidance": 2.0}
    x, seen = noise([1, 2, 3], grids, 192), []
    got = sample(
        model,
        x,
        ENCODER(prompts),
        grids,
        mu=mu,
        uncond=ENCODER([""] * 3),
        on_step=lambda step, tokens: seen.append(tokens),
        **options,
    )
    sizes = [h * w for h, w in grids]
    parts = zip(got.split(sizes), x.split(sizes), seen[1].split(sizes), prompts, grids, mu, strict=True)
    for part, begin, estimate, prompt, grid, one in parts:
        told = []
        alone = sample(
            model,
            begin,
            ENCODER([prompt]),
            [grid],
            mu=one,
            uncond=ENCODER([""]),
            on_step=lambda step, tokens, told=told: told.append(tokens),
            **options,
        )
        assert (part - alone).abs().max() <= 1e-5
        assert (estimate - told[1]).abs().max() <= 1e-5
    shared = sample(model, x, ENCODER(prompts), grids, mu=mu[0], uncond=ENCODER([""] * 3), **options)
    assert (shared - got)[6:].abs().max() > 1e-3
    assert torch.equal(got, sample(model, x, ENCODER(prompts), grids, mu=None, uncond=ENCODER([""] * 3), **options))
    with pytest.raises(ValueError, match="times for 2 images of 3"):
        sample(model, x, ENCODER(prompts), grids, steps=4, mu=mu[:2])


def test_image_to_image_at_full_strength_is_text_to_image_and_below_it_keeps_the_picture():
    model, cond, grids = tiny_model(0), ENCODER(["a red cat", "sky"]), [(2, 3), (4, 5)]
    image, x = torch.randn(26, 192, generator=torch.Generator().manual_seed(3)), noise([1, 2], grids, 192)
    full = schedule(6, None, grids, 1.0)
    assert torch.equal(start(image, x, grids, full), x)
    with torch.inference_mode():
        want = sample(model, x, cond, grids, steps=6, mu=None)
        assert torch.equal(euler(guided(model, cond, None, 0.0), start(image, x, grids, full), cond, grids, full), want)
    half = schedule(6, None, grids, 0.5)
    for part, clean, eps, times in zip(
        start(image, x, grids, half).split([6, 20]), image.split([6, 20]), x.split([6, 20]), half, strict=True
    ):
        assert isinstance(times, list)
        assert len(times) == 4
        assert torch.allclose(part, (1 - times[0]) * clean + times[0] * eps, atol=1e-6)
    faint = schedule(6, 0.0, grids, 1 / 6)
    straight = euler(lambda x, t, cond, grids: x, start(image, x, grids, faint), cond, grids, faint)
    assert torch.allclose(straight, (5 / 6) * (5 / 6 * image + x / 6), atol=1e-6)


def test_presets_are_those_of_the_released_checkpoints():
    assert (preset("raw").steps, preset("RAW").guidance, preset("Raw").mu) == (52, 3.5, None)
    assert (preset("turbo").steps, preset("turbo").guidance, preset("turbo").mu) == (8, 0.0, 1.15)
    with pytest.raises(ValueError, match="there is no preset 'fast'; use raw or turbo"):
        preset("fast")


def test_euler_on_a_straight_path_lands_on_the_image_in_any_number_of_steps():
    image, start = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    cond, seen = ENCODER(["x"]), []

    def straight(x, t, cond, grids):
        assert t.shape == (1,)
        return start - image

    for steps in (1, 5):
        end = euler(straight, start, cond, [(2, 2)], timesteps(steps, 0.7), lambda step, x0: seen.append((step, x0)))
        assert torch.allclose(end, image, atol=1e-6)
    assert [step for step, _ in seen] == [0, 0, 1, 2, 3, 4]
    assert all(torch.allclose(x0, image, atol=1e-6) for _, x0 in seen)


def test_guidance_counts_from_zero_and_runs_one_forward_when_it_is_off():
    cond, uncond = ENCODER(["a b"]), ENCODER([""])
    calls = []

    def model(x, t, cond, grids):
        calls.append(cond.lengths)
        return torch.stack([states.mean().expand(2) for states in cond.states.split(list(cond.lengths))])

    x, t = torch.zeros(1, 2), torch.ones(1)
    v, v0 = cond.states.mean(), uncond.states.mean()
    for guidance in (0.0, 3.5):
        got = guided(model, cond, uncond, guidance)(x, t, cond, [(1, 1)])
        assert got[0, 0].item() == pytest.approx((v + guidance * (v - v0)).item(), rel=1e-5)
    assert calls == [(3,), (3, 1)]
    with pytest.raises(ValueError, match=r"guidance 3\.5 needs the encoded empty prompt"):
        sample(model, x, cond, [(1, 1)], steps=1, mu=0, guidance=3.5)


def padded(cond: Conditioning, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of one prompt as diffusers wants them, padding in the middle."""
    hole = length - len(cond.states)
    states = torch.cat([cond.states[:1], torch.full((hole, 3, 32), 9.0), cond.states[1:]])
    mask = torch.ones(1, length, dtype=torch.bool)
    mask[0, 1 : 1 + hole] = False
    return states[None], mask


def pipeline_of(transformer: Any, distilled: bool) -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
    )
    absent: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    pipeline = Krea2Pipeline(
        **absent, scheduler=scheduler, vae=vae.eval(), transformer=transformer, is_distilled=distilled
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("guidance", "distilled", "size"), [(3.0, False, (40, 56)), (0.0, True, (32, 32))])
def test_latents_and_pictures_equal_those_of_the_pipeline_in_diffusers(twin, guidance, distilled, size):
    model = tiny_model(1, tiny())
    pipeline = pipeline_of(twin(model), distilled)
    cond, uncond, grid = ENCODER(["a red cat in the snow"]), ENCODER([""]), (size[0] // 8, size[1] // 8)
    start = noise([5], [grid], 16)
    options: dict[str, Any] = dict(zip(("prompt_embeds", "prompt_embeds_mask"), padded(cond, 12), strict=True))
    if guidance:
        names = ("negative_prompt_embeds", "negative_prompt_embeds_mask")
        options |= dict(zip(names, padded(uncond, 12), strict=True))
    options |= {"height": size[0], "width": size[1], "num_inference_steps": 4, "guidance_scale": guidance}
    want, picture = (
        pipeline(**options, generator=torch.Generator().manual_seed(5), output_type=kind).images
        for kind in ("latent", "pt")
    )
    mu = 1.15 if distilled else shift_mu(grid[0] * grid[1])
    got = sample(model, start, cond, [grid], steps=4, mu=mu, guidance=guidance, uncond=uncond)
    assert (got - want[0]).abs().max() <= (1e-4 if guidance else 5e-6)
    decoded = QwenImageAutoencoder(pipeline.vae).decode(unpack(want[0], [grid])[0][None])
    assert (decoded / 2 + 0.5 - picture).abs().max() <= 2e-6


def test_whole_numbers_are_times_and_what_does_not_go_down_is_refused():
    x, image = torch.randn(2, 1, 64).unbind()
    cond, grids = Conditioning(torch.zeros(1, 2, 4), (1,)), [(1, 1)]

    def straight(x, t, cond, grids):
        assert t.dtype == torch.float32
        return x - image

    cases: list[tuple[Any, list[float]]]
    cases = [([1, 0.5, 0], [1.0, 0.5, 0.0]), ([[1, 0]], [1.0, 0.0]), (torch.tensor([1, 0]), [1.0, 0.0])]
    for whole, floats in cases:
        assert torch.equal(euler(straight, x, cond, grids, whole), euler(straight, x, cond, grids, floats))
        want = sde(straight, x, cond, grids, floats, [3])
        assert torch.equal(sde(straight, x, cond, grids, whole, [3]), want)
        assert want.isfinite().all()
    with pytest.raises(ValueError, match="no times; give two or more that go down"):
        start(image, x, grids, [])
    with pytest.raises(ValueError, match=r"times \[1\.0\] have no step"):
        start(image, x, grids, [1.0])
    assert torch.equal(euler(straight, x, cond, grids, [0.5]), x), "no step"
    with pytest.raises(ValueError, match="no times"):
        euler(straight, x, cond, grids, [])
    for rising in ([0.0, 1.0], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match=r"times that go up from 0\.0 to 1\.0"):
            euler(straight, x, cond, grids, rising)
