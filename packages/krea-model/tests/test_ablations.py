import math
import runpy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from krea_model.ablations import BASELINE, VARIANTS, counts, initialise, variant
from krea_model.ablations.parts import HeadNorm, LayerNorm, PlainBlock, PlainRMSNorm, TimeTokens
from krea_model.configs import Config, base, k2, tiny
from krea_model.interfaces import Conditioning, Velocity
from krea_model.mmdit import MMDiT
from krea_model.sampling import noise, sample
from krea_model.testing import fill, tiny_model
from torch import Tensor, nn

ALL = (*VARIANTS, BASELINE, "time_tokens+layer_norm+no_gate+gelu", "no_qk_norm+plain_rms_norm")
WIDTH = 48  # of the T5 in these tests
LENGTHS, GRIDS = [5, 1, 12, 5], [(3, 5), (1, 1), (5, 3), (3, 5)]


def filled(name: str, config: Config | None = None, seed: int = 0) -> MMDiT:
    """Random weights, norms around one."""
    model = variant(name, config or tiny(), t5_width=WIDTH)
    fill(model, seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, LayerNorm | PlainRMSNorm):
                part.gain.add_(1)
    return model.eval()


def inputs(model: MMDiT, lengths=LENGTHS, grids=GRIDS, seed: int = 0):
    generator, config = torch.Generator().manual_seed(seed), model.config
    x = torch.randn(sum(h * w for h, w in grids), config.token_features, generator=generator)
    states = torch.randn(sum(lengths), config.txtlayers, config.txtdim, generator=generator)
    t = torch.rand(len(grids), generator=generator)
    return x, t, Conditioning(states, tuple(lengths)), grids


def load(model: MMDiT, state: dict[str, Tensor]) -> MMDiT:
    model.load_state_dict(state)
    return model.eval()


def outputs(model: MMDiT, like: MMDiT) -> Tensor:
    with torch.no_grad():
        return model(*inputs(like))


def turned(x: Tensor, grid: tuple[int, int], lead: int, config: Config) -> Tensor:
    """Rotary positions of one sequence, pair by pair; x: `s n d`."""
    out, (_, cols) = x.clone(), grid
    for row in range(lead, len(x)):
        place, at = (0, (row - lead) // cols, (row - lead) % cols), 0
        for axis, size in enumerate(config.axes):
            for j in range(0, size, 2):
                angle = place[axis] * config.theta ** (-j / size)
                a, b = x[row, :, at], x[row, :, at + 1]
                out[row, :, at] = a * math.cos(angle) - b * math.sin(angle)
                out[row, :, at + 1] = a * math.sin(angle) + b * math.cos(angle)
                at += 2
    return out


class Dense:
    """A variant for one sample, written out from its tensors' names and shapes, with attention as a plain softmax."""

    def __init__(self, model: MMDiT, name: str) -> None:
        self.state, self.config, self.names = model.state_dict(), model.config, name.split("+")

    def norm(self, x: Tensor, key: str) -> Tensor:
        if f"{key}.bias" in self.state:
            return F.layer_norm(x, x.shape[-1:], self.state[f"{key}.gain"], self.state[f"{key}.bias"])
        if f"{key}.gain" in self.state:
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.state[f"{key}.gain"]
        if f"{key}.scale" in self.state:
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + self.state[f"{key}.scale"])
        return x

    def linear(self, x: Tensor, key: str) -> Tensor:
        return F.linear(x, self.state[f"{key}.weight"], self.state.get(f"{key}.bias"))

    def attention(self, x: Tensor, key: str, heads: int, grid: tuple[int, int] | None = None, lead: int = 0) -> Tensor:
        q, k, v = (self.linear(x, f"{key}.w{c}").unflatten(-1, (-1, x.shape[-1] // heads)) for c in "qkv")
        q, k = self.norm(q, f"{key}.qknorm.qnorm"), self.norm(k, f"{key}.qknorm.knorm")
        if grid is not None:
            q, k = turned(q, grid, lead, self.config), turned(k, grid, lead, self.config)
        k, v = (y.repeat_interleave(heads // y.shape[1], 1) for y in (k, v))
        weights = (torch.einsum("snd,tnd->nst", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        out = torch.einsum("nst,tnd->snd", weights, v).flatten(1)
        if "no_gate" not in self.names:
            out = out * self.linear(x, f"{key}.gate").sigmoid()
        return self.linear(out, f"{key}.wo")

    def mlp(self, x: Tensor, key: str) -> Tensor:
        if "gelu" in self.names:
            return self.linear(F.gelu(self.linear(x, f"{key}.up"), approximate="tanh"), f"{key}.down")
        return self.linear(F.silu(self.linear(x, f"{key}.gate")) * self.linear(x, f"{key}.up"), f"{key}.down")

    def text(self, states: Tensor) -> Tensor:
        x, heads = states, self.config.txtheads
        if {"t5", "last_layer_text"} & set(self.names):
            x = states[:, -1]
        else:
            x = torch.stack([self.stack(token, "layerwise", heads) for token in states])
            x = self.linear(x.transpose(1, 2), "txtfusion.projector")[..., 0]
        x = self.norm(self.stack(x, "refiner", heads), "txtmlp.0")
        return self.linear(F.gelu(self.linear(x, "txtmlp.1"), approximate="tanh"), "txtmlp.3")

    def stack(self, x: Tensor, kind: str, heads: int) -> Tensor:
        for i in range(2):
            key = f"txtfusion.{kind}_blocks.{i}"
            x = x + self.attention(self.norm(x, f"{key}.prenorm"), f"{key}.attn", heads)
            x = x + self.mlp(self.norm(x, f"{key}.postnorm"), f"{key}.mlp")
        return x

    def __call__(self, x: Tensor, t: float, states: Tensor, grid: tuple[int, int]) -> Tensor:
        half = self.config.tdim // 2
        angles = torch.tensor([1000 * t * 1e4 ** (-i / half) for i in range(half)])
        temb = self.linear(torch.cat([angles.cos(), angles.sin()]), "tmlp.0")
        temb = self.linear(F.gelu(temb, approximate="tanh"), "tmlp.2")
        seq, lead = torch.cat([self.text(states), self.linear(x, "first")]), len(states)
        if "time_tokens" in self.names:
            seq, lead = torch.cat([temb + self.state["times.lin"], seq]), lead + 8
        for i in range(self.config.layers):
            key, mod = f"blocks.{i}", self.modulation(temb, f"blocks.{i}")
            y = self.norm(seq, f"{key}.prenorm") * (1 + mod[0]) + mod[1]
            seq = seq + mod[2] * self.attention(y, f"{key}.attn", self.config.heads, grid, lead)
            seq = seq + mod[5] * self.mlp(self.norm(seq, f"{key}.postnorm") * (1 + mod[3]) + mod[4], f"{key}.mlp")
        out = self.norm(seq[lead:], "last.norm")
        if "time_tokens" not in self.names:
            out = out * (1 + temb + self.state["last.modulation.lin"][0]) + temb + self.state["last.modulation.lin"][1]
        return self.linear(out, "last.linear")

    def modulation(self, temb: Tensor, key: str) -> Tensor:
        if "time_tokens" in self.names:
            return torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None]
        of = f"{key}.modproj" if "per_block_modulation" in self.names else "tproj.1"
        mod = self.linear(F.gelu(temb, approximate="tanh"), of) + self.state[f"{key}.mod.lin"]
        return mod.unflatten(-1, (6, -1))


@pytest.mark.parametrize("name", ALL)
def test_a_variant_is_what_is_written_out_for_one_sample_in_any_batch(name):
    model = filled(name)
    velocity: Velocity = model
    x, t, cond, grids = inputs(model)
    with torch.no_grad():
        got = velocity(x, t, cond, grids).split([h * w for h, w in grids])
        written = Dense(model, name)
        for i, (image, text) in enumerate(
            zip(x.split([h * w for h, w in grids]), cond.states.split(LENGTHS), strict=True)
        ):
            want = written(image, float(t[i]), text, grids[i])
            assert want.std() > 0.1
            assert (got[i] - want).abs().max() <= 2e-5 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", ALL)
def test_every_weight_of_a_variant_learns(name):
    model = filled(name)
    args = inputs(model)
    model(*args).square().mean().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.abs().max() > 1e-8, key


@pytest.mark.parametrize("name", ALL)
def test_a_variant_starts_as_identity_and_learns_one_batch(name):
    model = initialise(variant(name, tiny(), t5_width=WIDTH), seed=0)
    x, t, cond, grids = inputs(model)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: Any, out: Any) -> None:
        seen.append((args[0], out))

    hooks = [block.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        assert model(x, t, cond, grids).abs().max() == 0
    assert len(seen) == tiny().layers
    assert all(torch.equal(before, after) for before, after in seen)
    assert seen[0][0].std() > 0.1
    for hook in hooks:
        hook.remove()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start, losses = {n: p.clone() for n, p in model.named_parameters()}, []
    for _ in range(12):
        loss = (model(x, t, cond, grids) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert sum(torch.equal(start[n], p) for n, p in model.named_parameters()) == 0


def test_starting_weights_follow_from_the_seed_and_put_modulation_at_rest():
    one, two = (initialise(variant("time_tokens", tiny()), seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["times.lin"].std(0).min() > 0.01  # equal tokens would stay equal
    model = initialise(variant("per_block_modulation", tiny()), seed=3)
    block = model.blocks[1]
    assert isinstance(block, PlainBlock)
    assert block.modproj is not None
    assert block.mod is not None
    mod = block.modproj(torch.randn(2, tiny().features)) + block.mod.lin
    assert torch.equal(mod, torch.tensor([0.0, 0, 1, 0, 0, 1]).repeat_interleave(tiny().features).expand(2, -1))


@pytest.mark.parametrize("name", ALL)
def test_a_variant_runs_in_bf16_and_in_a_sampler(name):
    model = filled(name)
    x, _, cond, grids = inputs(model)
    tokens = noise(list(range(4)), grids, model.config.token_features)
    drawn = sample(model, tokens, cond, grids, steps=2, mu=0.0, guidance=1.5, uncond=cond)
    assert drawn.shape == x.shape
    assert drawn.isfinite().all()
    model.bfloat16()
    with torch.no_grad():
        assert model(x.bfloat16(), torch.full((4,), 0.5), cond, grids).dtype == torch.bfloat16


def test_mha_is_diffusers_with_as_many_key_value_heads(twin, one_by_one):
    model = filled("mha")
    assert model.config.kvheads == model.config.heads > tiny().kvheads
    args = inputs(model)
    with torch.no_grad():
        assert (model(*args) - one_by_one(twin(model), *args)).abs().max() <= 5e-6


def test_plain_rms_norm_stores_one_more_and_is_else_the_model():
    model = tiny_model(1, tiny())
    state = {
        key.replace(".scale", ".gain"): 1 + value if key.endswith(".scale") else value
        for key, value in model.state_dict().items()
    }
    other = load(variant("plain_rms_norm", tiny()), state)
    torch.testing.assert_close(outputs(other, model), outputs(model, model), rtol=0, atol=2e-6)


def test_without_gate_the_model_is_one_whose_gates_are_all_half():
    model = tiny_model(1, tiny())
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("attn.gate.weight"):
                p.zero_()
    state = {
        key: value / 2 if key.endswith("attn.wo.weight") else value
        for key, value in model.state_dict().items()
        if not key.endswith("attn.gate.weight")
    }
    other = load(variant("no_gate", tiny()), state)
    assert torch.allclose(outputs(other, model), outputs(model, model), atol=1e-6)


def test_per_block_modulation_with_the_shared_projection_in_each_block_is_the_model():
    model = tiny_model(1, tiny())
    state = model.state_dict()
    weight, bias = state.pop("tproj.1.weight"), state.pop("tproj.1.bias")
    for i in range(tiny().layers):
        state[f"blocks.{i}.modproj.weight"] = weight
        state[f"blocks.{i}.mod.lin"] = state[f"blocks.{i}.mod.lin"] + bias
    other = load(variant("per_block_modulation", tiny()), state)
    assert torch.allclose(outputs(other, model), outputs(model, model), atol=2e-6)


def test_the_last_tap_alone_is_a_fusion_that_looks_at_nothing_else():
    model = tiny_model(1, tiny())
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "layerwise" in key and key.endswith(("attn.wo.weight", "mlp.down.weight")):
                p.zero_()
        model.txtfusion.projector.weight.copy_(torch.eye(3)[-1:])
    kept = {k: v for k, v in model.state_dict().items() if "layerwise" not in k and "projector" not in k}
    other = load(variant("last_layer_text", tiny()), kept)
    assert torch.allclose(outputs(other, model), outputs(model, model), atol=1e-6)


def test_layer_norm_is_that_of_torch_and_spares_queries_and_keys():
    ours, theirs = LayerNorm(24), nn.LayerNorm(24)
    fill(ours)
    theirs.load_state_dict({"weight": ours.gain.detach(), "bias": ours.bias.detach()})
    x = 3 + torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    low = ours(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), theirs(x.bfloat16().float()), atol=1e-2, rtol=1e-2)
    kinds = {key.rsplit(".", 1)[-1] for key in variant("layer_norm", tiny()).state_dict() if "norm" in key}
    assert kinds == {"gain", "bias", "scale"}
    assert "blocks.0.attn.qknorm.qnorm.scale" in variant("layer_norm", tiny()).state_dict()


def test_gelu_has_as_many_parameters_in_every_mlp():
    model, other = MMDiT(tiny()), variant("gelu", tiny())
    for kind in ("blocks.0.mlp", "txtfusion.refiner_blocks.1.mlp"):
        sizes = [sum(p.numel() for p in m.get_submodule(kind).parameters()) for m in (model, other)]
        assert sizes[0] == sizes[1]


def test_time_tokens_say_the_time_and_text_can_be_made_before():
    model = filled("time_tokens")
    x, t, cond, grids = inputs(model)
    assert isinstance(model, TimeTokens)
    with torch.no_grad():
        want = model(x, t, cond, grids)
        assert torch.equal(model(x, t, cond, grids, model.text(cond)), want)
        later = model(x, t.flip(0), cond, grids)
        assert (later - want).abs().max() > 1e-2
    assert not any("mod" in key for key in model.state_dict())


def test_t5_takes_the_states_of_a_t5():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()
    model = filled("t5")
    with torch.no_grad():
        states = [encoder(input_ids=ids).last_hidden_state[0] for ids in torch.randint(50, (4, 1, 6))]
        cond = Conditioning(torch.cat(states)[:, None], (6,) * 4)
        x, t, _, grids = inputs(model)
        assert model(x, t, cond, grids).shape == x.shape
    with torch.device("meta"):
        config = variant("t5", k2()).config
    assert (config.txtdim, config.txtlayers, config.txtdim // config.txtheads) == (4096, 1, 128)


def test_what_is_not_swapped_keeps_its_names():
    names = set(MMDiT(tiny()).state_dict())
    for one in ("layer_norm", "no_gate", "no_qk_norm", "per_block_modulation", "time_tokens", "last_layer_text"):
        others = set(variant(one, tiny()).state_dict())
        swapped = {
            "layer_norm": ("norm.", "txtmlp.0."),
            "no_gate": ("attn.gate.",),
            "no_qk_norm": ("qknorm.",),
            "per_block_modulation": ("tproj.", "modproj."),
            "time_tokens": ("mod", "tproj.", "times."),
            "last_layer_text": ("layerwise", "projector"),
        }[one]
        for name in names ^ others:
            assert any(part in name for part in swapped), name
    assert set(variant("mha", tiny()).state_dict()) == names


def test_counts_of_the_released_size_follow_the_arithmetic():
    f, layers = 6144, 28
    rows = {row.name: row for row in counts(k2())}
    assert rows["released"].parameters == 12_820_073_036
    assert rows["mha"].difference == layers * 2 * (48 - 12) * 128 * f
    assert rows["gelu"].difference == rows["plain_rms_norm"].difference == 0
    assert rows["no_gate"].difference == -(layers * f * f + 4 * 2560 * 2560)
    assert rows["no_qk_norm"].difference == -(layers + 4) * 2 * 128
    assert rows["layer_norm"].difference == (2 * layers + 1) * f + (8 + 1) * 2560  # biases
    own = rows["per_block_modulation"]
    assert own.modulation == layers * (6 * f * f + 6 * f) + 2 * f
    assert own.difference == (layers - 1) * 6 * f * f - 6 * f
    assert rows["time_tokens"].difference == 8 * f - rows["released"].modulation


def test_modulation_per_block_costs_what_the_report_says():
    shares = []
    for config in (base(), k2()):
        row = next(row for row in counts(config) if row.name == "per_block_modulation")
        shares.append(row.modulation / row.parameters)
    assert 0.2 < shares[0] < 0.3  # the report: 20 to 30 % of all parameters
    assert 0.3 < shares[1] < 0.35  # without a text stage, 6 of 17.5 squares of the width


def test_the_command_prints_a_table_for_each_size(capsys):
    runpy.run_module("krea_model.ablations", run_name="__main__")
    printed = capsys.readouterr().out
    assert "| released | 12,820,073,036 | +0 | 1.8 % |" in printed
    assert printed.count("| per_block_modulation |") == 2


def test_bad_names_are_said():
    with pytest.raises(ValueError, match="no variant 'mqa'; there are mha, gelu"):
        variant("mha+mqa", tiny())
    with pytest.raises(ValueError, match="swap the same part"):
        variant("time_tokens+per_block_modulation", tiny())
    with pytest.raises(ValueError, match="each must divide"):
        variant("t5", tiny(), t5_width=50)


def test_swaps_are_the_same_in_any_order():
    one, two = (
        variant("layer_norm+no_gate+per_block_modulation", tiny()),
        variant("per_block_modulation+layer_norm+no_gate", tiny()),
    )
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(isinstance(block, PlainBlock) for block in one.blocks)
    plain = variant("no_qk_norm+plain_rms_norm", replace(tiny(), layers=1))
    assert isinstance(plain.blocks[0].get_submodule("attn.qknorm"), HeadNorm)
