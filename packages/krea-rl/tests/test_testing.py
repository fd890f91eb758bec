"""The stand-ins are what they claim: exact flows, rewards with the stated optimum."""

import torch
from krea_model.interfaces import TextEncoder, Velocity
from krea_model.sampling import euler
from krea_rl.interfaces import Reward
from krea_rl.testing import Brightness, LinearHead, NearPoint, PlainText, Ring, as_points, points


def test_ring_velocity_is_the_mean_of_the_target() -> None:
    ring: Velocity = Ring()
    text: TextEncoder = PlainText()
    generator = torch.Generator().manual_seed(0)
    n, t = 200_000, 0.5
    x0, noise = Ring().draw(n, generator), torch.randn(n, 2, generator=generator)
    x = (1 - t) * x0 + t * noise
    v = ring(x, torch.full((n,), t), text([""] * n), points(n))
    gap = (noise - x0) - v
    for probe in (torch.ones(n, 1), x, x.square(), torch.sin(2 * x)):  # a conditional mean leaves nothing to explain
        assert (gap * probe).mean(0).abs().max().item() < 0.03


def test_ring_flow_ends_on_the_modes() -> None:
    ring, n = Ring(), 200
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    times = [1 - i / 100 for i in range(101)]
    out = euler(ring, x, PlainText()([""] * n), points(n), times)
    assert torch.cdist(out, ring.centres).min(1).values.median().item() < 0.3


def test_linear_head_starts_at_its_base() -> None:
    ring, n = Ring(), 5
    x, t = torch.randn(n, 2, generator=torch.Generator().manual_seed(2)), torch.full((n,), 0.4)
    inputs = (x, t, PlainText()([""] * n), points(n))
    assert torch.equal(LinearHead(ring)(*inputs), ring(*inputs))


def test_optima() -> None:
    bright: Reward = Brightness()
    near: Reward = NearPoint(1.0, 2.0)
    assert bright(["", ""], torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 4, 4)).tolist() == [0.0, 1.0]
    scores = near(["", ""], as_points(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), points(2)))
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.60653]))
