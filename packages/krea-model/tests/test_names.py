import torch
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from krea_model.configs import k2
from krea_model.mmdit import MMDiT
from krea_model.names import linears, to_diffusers, to_original
from torch import nn

with torch.device("meta"):
    OURS = MMDiT(k2())
    THEIRS = Krea2Transformer2DModel()


def test_the_430_names_map_onto_diffusers_and_back():
    ours, theirs = OURS.state_dict(), THEIRS.state_dict()
    assert len(ours) == 430
    assert {to_diffusers(name) for name in ours} == set(theirs)
    assert {to_original(name) for name in theirs} == set(ours)
    for name, tensor in ours.items():
        other = theirs[to_diffusers(name)]
        assert tensor.numel() == other.numel()
        assert tensor.shape == other.shape or name.endswith(".mod.lin")


def test_linears_lists_every_linear_module_under_both_spellings():
    found = {name for name, module in OURS.named_modules() if isinstance(module, nn.Linear)}
    assert len(found) == 264
    assert found == set(linears(28))
    theirs = {name for name, module in THEIRS.named_modules() if isinstance(module, nn.Linear)}
    assert {to_diffusers(name) for name in found} == theirs
    assert {to_original(name) for name in theirs} == found


def test_names_of_neither_spelling_stay():
    for name in ("last.up.weight", "double_blocks.0.img_attn.qkv.weight", "firstborn.weight", ""):
        assert to_diffusers(name) == name
    assert to_original("norm_out.linear.weight") == "norm_out.linear.weight"
