import json
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from krea_model.configs import Config, base, k2, small, tiny
from krea_model.mmdit import MMDiT
from krea_model.sizes import confirm_config, diffusers_config, infer_config


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in MMDiT(config).state_dict().items()}


@pytest.mark.parametrize("config", [k2(), base(), small(), tiny()], ids=["k2", "base", "small", "tiny"])
def test_sizes_follow_from_shapes(config):
    assert infer_config(shapes_of(config)) == config


def test_an_ambiguous_multiplier_gives_the_same_shapes():
    odd = replace(tiny(), multiplier=3, txtmultiplier=9, channels=3, patch=1)
    assert shapes_of(infer_config(shapes_of(odd))) == shapes_of(odd)
    assert infer_config(shapes_of(odd)).patch == 1


def test_a_width_that_the_rule_cannot_give_is_refused():
    shapes = shapes_of(tiny()) | {"blocks.0.mlp.up.weight": (200, 64)}
    with pytest.raises(ValueError, match="hidden width of 200"):
        infer_config(shapes)


def test_the_released_sizes_are_the_defaults_of_diffusers():
    with torch.device("meta"):
        defaults = dict(Krea2Transformer2DModel().config)
    ours = diffusers_config(k2())
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items() if key in ours} == {
        key: value for key, value in ours.items() if key in defaults
    }
    assert set(ours) - {"_class_name"} <= set(defaults)


def test_the_rotary_base_comes_from_the_json_and_other_contradictions_are_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(diffusers_config(tiny()) | {"rope_theta": 500}))
    assert confirm_config(tiny(), file) == replace(tiny(), theta=500.0)
    file.write_text(json.dumps(diffusers_config(tiny()) | {"norm_eps": 1e-6}))
    with pytest.raises(ValueError, match="norm_eps = 1e-06"):
        confirm_config(tiny(), file)
