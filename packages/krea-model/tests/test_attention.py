import pytest
import torch
import torch.nn.functional as F
from krea_model.attention import attend

LENGTHS = [[4, 4, 4], [1, 2, 2, 9], [9, 2, 5, 2, 1, 9, 2], [3]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_sequence_attends_to_itself_alone(lengths: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(sum(lengths), 6, 16, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(sum(lengths), 2, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attend(q, k, v, lengths)
    assert out.dtype == dtype

    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    mask = owner[:, None] == owner[None, :]
    whole = [x.double().transpose(0, 1)[None] for x in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*whole, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
    atol = 1e-6 if dtype == torch.float64 else 0.03
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=atol)

    weights = torch.randn_like(wanted)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    theirs = torch.autograd.grad((wanted * weights).sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=10 * atol)
