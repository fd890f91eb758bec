import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from krea_model.flow import clean, late, logit_normal, mix, shift, shift_mu, timesteps, velocity


def test_the_line_goes_from_image_to_noise_along_its_velocity():
    image, noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([[0.0], [0.25], [0.5], [0.75], [1.0]])
    x, v = mix(image, noise, t), velocity(image, noise)
    assert torch.equal(x[0], image[0])
    assert torch.equal(x[4], noise[4])
    assert torch.allclose(mix(image, noise, t + 0.125) - x, 0.125 * v, atol=1e-6)
    assert torch.allclose(clean(x, v, t), image, atol=1e-6)
    assert torch.allclose(clean(x[1], v[1], 0.25), image[1], atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "mu", "factor"),
    [
        (256, 256, 0.5, 1.6487),
        (512, 512, 0.58125, 1.7883),
        (768, 768, 0.716667, 2.0476),
        (832, 1248, 0.902018, 2.4646),
        (1024, 1024, 0.90625, 2.4750),
        (1280, 1280, 1.15, 3.1582),
        (2048, 2048, 2.20625, 9.0816),
    ],
)
def test_the_shift_of_the_released_model_at_each_size(height, width, mu, factor):
    got = shift_mu((height // 16) * (width // 16))
    assert got == pytest.approx(mu, abs=1e-6)
    assert math.exp(got) == pytest.approx(factor, abs=1e-4)


def test_turbo_has_the_published_times():
    published = [1.0, 0.956724, 0.904531, 0.840349, 0.759511, 0.654567, 0.512844, 0.310901, 0.0]
    assert timesteps(8, 1.15) == pytest.approx(published, abs=1e-6)


@pytest.mark.parametrize(("steps", "tokens"), [(8, 6400), (28, 4096), (52, 4096), (52, 16384), (28, 35), (1, 256)])
def test_times_are_those_of_the_scheduler_in_diffusers(steps, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=shift_mu(tokens))
    assert timesteps(steps, shift_mu(tokens)) == pytest.approx(torch.as_tensor(scheduler.sigmas).tolist(), abs=2e-7)


@given(t=st.floats(0.001, 0.999), mu=st.floats(-3, 3))
def test_the_shift_adds_mu_to_the_logit_and_is_undone_by_its_negative(t, mu):
    moved = shift(torch.tensor(t, dtype=torch.float64), mu)
    assert torch.logit(moved).item() == pytest.approx(math.log(t / (1 - t)) + mu, abs=1e-9)
    assert shift(moved, -mu).item() == pytest.approx(t, abs=1e-9)


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="0 sampling steps"):
        timesteps(0, 1.15)


def test_logit_normal_has_the_quantiles_of_its_name():
    u = (torch.arange(10_000) + 0.5) / 10_000
    t = logit_normal(u, mean=-0.4, std=1.5)
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(-0.4, abs=1e-3)
    assert logits.std().item() == pytest.approx(1.5, abs=2e-3)
    assert torch.equal(t, t.sort().values)
    edge = logit_normal([0.0, 1.0])
    assert 0 <= edge[0] < 1e-2
    assert edge[1] <= 1
    assert edge.isfinite().all()


@given(steps=st.integers(1, 60), strength=st.floats(0.001, 1.0))
def test_image_to_image_begins_where_diffusers_begins(steps, strength):
    times = timesteps(steps, 0.9)
    scheduler = SimpleNamespace(timesteps=list(range(steps)), order=1)
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    theirs, count = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, steps, strength, None)
    if not count:
        with pytest.raises(ValueError, match=f"leaves none of {steps} steps"):
            late(times, strength)
        return
    assert late(times, strength) == times[theirs[0] :]


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_a_strength_out_of_range_is_an_error(strength):
    with pytest.raises(ValueError, match="must lie above 0"):
        late(timesteps(8, 1.15), strength)
