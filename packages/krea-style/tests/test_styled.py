"""The base stays the base; strength is linear; references are a set; files fit one base."""

from pathlib import Path

import pytest
import torch
from krea_model.configs import k2, tiny
from krea_model.interfaces import Velocity
from krea_model.mmdit import MMDiT
from krea_model.sampling import sample
from krea_model.testing import FakeTextEncoder, fill, tiny_model
from krea_style.encoder import StyleConfig
from krea_style.features import WIDTHS, scattering
from krea_style.reference import Reference, Style, batch, style
from krea_style.styled import StyleAttention, StyledMMDiT, fingerprint, load, save
from krea_style.testing import look, mask, paint
from safetensors.torch import save_file
from torch import Tensor

CONFIG = StyleConfig(levels=WIDTHS, tokens=3, features=16, width=16, heads=2, layers=1)
GRIDS = [(2, 3), (1, 2), (2, 3)]
PICTURES = [paint(mask(i), look(i)) for i in range(4)]


def trained(seed: int = 1) -> StyledMMDiT:
    """A style module with weights that all matter."""
    module = StyledMMDiT(tiny_model(), CONFIG)
    fill(module, seed)
    return module


def one(module: StyledMMDiT, *pairs: tuple[int, float], weights: list[float] | None = None) -> Style:
    with torch.no_grad():
        references = [Reference(image=PICTURES[i], strength=s) for i, s in pairs]
        return style(references, module.encoder(scattering), weights)


def inputs(module: StyledMMDiT) -> tuple:
    x = torch.randn(14, module.base.config.token_features, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([0.3, 0.6, 0.9]), FakeTextEncoder()(["a cat", "dog", "one red bird"]), GRIDS


@torch.no_grad()
def run(module: StyledMMDiT, *styles: Style) -> Tensor:
    return module(*inputs(module), batch(styles))


@torch.no_grad()
def base(module: StyledMMDiT) -> Tensor:
    return module.base(*inputs(module))


def test_strength_zero_and_no_style_are_the_base_bit_for_bit() -> None:
    module = trained()
    off = one(module, (0, 0.0), (1, 0.0))
    assert torch.equal(run(module, off, off, off), base(module))
    with torch.no_grad():
        assert torch.equal(module(*inputs(module)), base(module))
    fresh = StyledMMDiT(tiny_model(), CONFIG)  # before training the output projections are zero
    on = one(fresh, (0, 2.0))
    assert torch.equal(run(fresh, on, on, on), base(fresh))


def test_style_of_one_image_leaves_its_neighbours_alone() -> None:
    module = trained()
    off, on = one(module, (0, 0.0)), one(module, (0, 1.0))
    found, plain = run(module, off, on, off), base(module)
    assert torch.equal(found[:6], plain[:6])
    assert torch.equal(found[8:], plain[8:])
    assert (found[6:8] - plain[6:8]).abs().max() > 1e-2


def test_a_batch_equals_its_images_one_by_one() -> None:
    module = trained()
    styles = [one(module, (0, 1.0)), one(module, (1, 0.5), (2, -0.7)), one(module, (3, 2.0))]
    together = run(module, *styles).split([6, 2, 6])
    x, t, _, grids = inputs(module)
    for i, prompt in enumerate(["a cat", "dog", "one red bird"]):
        with torch.no_grad():
            cond = FakeTextEncoder()([prompt])
            alone = module(x.split([6, 2, 6])[i], t[i : i + 1], cond, grids[i : i + 1], styles[i])
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


def test_references_are_a_set() -> None:
    module = trained()
    forward = one(module, (0, 0.5), (1, -0.7), (2, 1.2))
    backward = one(module, (2, 1.2), (1, -0.7), (0, 0.5))
    torch.testing.assert_close(run(module, *[forward] * 3), run(module, *[backward] * 3), atol=1e-5, rtol=0)
    single, weighted = one(module, (0, 0.8)), one(module, (0, 0.8), (1, 0.8), weights=[1, 0])
    assert torch.equal(run(module, *[single] * 3), run(module, *[weighted] * 3))
    halves = one(module, (0, 0.8), (0, 0.8), weights=[1, 1])
    torch.testing.assert_close(run(module, *[halves] * 3), run(module, *[single] * 3), atol=1e-5, rtol=0)


def test_influence_grows_with_strength_and_turns_with_its_sign() -> None:
    module, plain = trained(), base(trained())
    sizes = [(run(module, *[one(module, (0, s))] * 3) - plain).norm().item() for s in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    up, down = (run(module, *[one(module, (0, s))] * 3) - plain for s in (0.05, -0.05))
    assert torch.cosine_similarity(up.flatten(), -down.flatten(), dim=0) > 0.99


def dense(attention: StyleAttention, image: Tensor, tokens: Tensor) -> Tensor:
    """The same attention for one image and one reference, written out."""
    heads = attention.heads
    q = attention.wq(attention.norm(image)).unflatten(-1, (heads, -1))
    k, v = (w(tokens).unflatten(-1, (heads, -1)) for w in (attention.wk, attention.wv))
    weights = torch.softmax(torch.einsum("snd,mnd->nsm", q, k) / q.shape[-1] ** 0.5, -1)
    return attention.wo(torch.einsum("nsm,mnd->snd", weights, v).flatten(1))


def test_attention_is_linear_in_scales_and_blind_to_places() -> None:
    attention = StyleAttention(12, CONFIG)
    fill(attention, 3)
    generator = torch.Generator().manual_seed(4)
    image, tokens = torch.randn(9, 12, generator=generator), torch.randn(3, 3, 16, generator=generator)
    with torch.no_grad():
        found = attention(image, Style(tokens, (0.5, -2.0, 1.0), (2, 0, 1)), [4, 2, 3])
        first = 0.5 * dense(attention, image[:4], tokens[0]) - 2 * dense(attention, image[:4], tokens[1])
        torch.testing.assert_close(found[:4], first, atol=1e-5, rtol=1e-5)
        assert found[4:6].abs().max() == 0
        torch.testing.assert_close(found[6:], dense(attention, image[6:], tokens[2]), atol=1e-5, rtol=1e-5)
        turned = attention(image[:4].flip(0), Style(tokens[:1], (1.0,), (1,)), [4])
        straight = attention(image[:4], Style(tokens[:1], (1.0,), (1,)), [4])
        torch.testing.assert_close(turned, straight.flip(0), atol=1e-6, rtol=1e-6)


def test_samplers_take_it_with_and_without_guidance() -> None:
    module = trained()
    velocity: Velocity = module.styled(batch([one(module, (0, 1.0)), one(module, (1, 0.5), (2, 0.5))]))
    text = FakeTextEncoder()
    x = torch.randn(6, module.base.config.token_features, generator=torch.Generator().manual_seed(5))
    grids, cond, uncond = [(2, 2), (1, 2)], text(["a", "b c"]), text(["", ""])
    plain = sample(velocity, x, cond, grids, steps=3, mu=0.5)
    assert torch.isfinite(plain).all()
    weak = sample(velocity, x, cond, grids, steps=3, mu=0.5, guidance=1e-6, uncond=uncond)
    torch.testing.assert_close(weak, plain, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="one style per image"):
        sample(velocity, x[:4], text(["a"]), grids[:1], steps=1, mu=0.5)


def test_only_the_style_module_is_owned_and_trained() -> None:
    module = trained()
    before = {name: value.clone() for name, value in module.base.state_dict().items()}
    assert all(name.startswith(("resampler.", "adapters.")) for name in module.state_dict())
    references = [module.encoder(scattering)(PICTURES[0][None])] * 3
    module(*inputs(module), Style(torch.cat(references), (1.0,) * 3, (1, 1, 1))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert all(p.grad is None for p in module.base.parameters())
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in module.base.state_dict().items())


def test_files_come_back_for_their_base_alone(tmp_path: Path) -> None:
    module, path = trained(), tmp_path / "style.safetensors"
    save(module, path)
    again = load(path, tiny_model())
    assert again.config == module.config
    on = one(module, (0, 1.0))
    assert torch.equal(run(again, on, on, on), run(module, on, on, on))
    other = tiny_model(seed=1)
    with pytest.raises(ValueError, match=r"trained on base .* other_base=True"):
        load(path, other)
    assert load(path, other, other_base=True).base is other
    with pytest.raises(ValueError, match="was trained on a base with"):
        load(path, MMDiT(tiny()), other_base=True)


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, others = tmp_path / "style.safetensors", [trained(2)]

    def interrupted(tensors: dict[str, Tensor], part: Path, manifest: dict[str, str]) -> None:
        save_file(tensors, part, manifest)
        if others:
            save(others.pop(), path)

    monkeypatch.setattr("krea_style.styled.save_file", interrupted)
    module = trained(1)
    save(module, path)
    assert all(torch.equal(load(path, tiny_model()).state_dict()[name], t) for name, t in module.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["style.safetensors"]


def test_fingerprint_tells_bases_apart_but_not_precisions() -> None:
    model = tiny_model()
    first = fingerprint(model)
    assert fingerprint(tiny_model(seed=1)) != first
    assert fingerprint(model.bfloat16()) == first


def test_what_does_not_fit_is_refused() -> None:
    module = trained()
    on = one(module, (0, 1.0))
    with pytest.raises(ValueError, match="a style of 2 images"):
        run(module, on, on)
    with pytest.raises(ValueError, match="this module's encoder"):
        run(module, *[Style(torch.zeros(1, 3, 5), (1.0,), (1,))] * 3)


def test_the_released_layout_is_wrapped_without_memory() -> None:
    with torch.device("meta"):
        large = StyledMMDiT(MMDiT(k2()), StyleConfig(levels=(1152,) * 3, tokens=16, features=1024, width=512, heads=8))
    assert len(large.adapters) == 28
    assert sum(p.numel() for p in large.adapters.parameters()) == 28 * (2 * 6144 * 512 + 2 * 1024 * 512 + 6144)
    assert next(large.parameters()).device.type == "meta"
