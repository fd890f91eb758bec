"""Between padded text states with a mask, as other programs hold them, and the flat states that the model takes."""

import torch
from torch import Tensor

from krea_model.interfaces import Conditioning

__all__ = ["pad", "unpad"]


def unpad(states: Tensor, mask: Tensor | None = None) -> Conditioning:
    """The valid tokens of padded text states, end to end; padding may lie anywhere and hold anything, NaN included.

    states: `b l k f`, prompts padded to l tokens; mask: `b l`, True (or 1, as tokenisers write it) where a token is
    valid, None where all are. ValueError for other shapes and for masks that hold anything but two values.
    """
    if states.ndim != 4:
        raise ValueError(
            f"padded text states of shape {tuple(states.shape)} have {states.ndim} axes; "
            "give them as (prompts, tokens, taps, width)"
        )
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit text states of shape {tuple(states.shape)}; "
            f"give one value per token, {tuple(states.shape[:2])}"
        )
    keep = _boolean(mask)
    return Conditioning(states[keep], tuple(keep.sum(1).tolist()))


def pad(cond: Conditioning, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Inverse of `unpad`: states `b l k f`, zeros behind each prompt, and the boolean mask `b l` of its valid tokens.

    length: l; None is the longest prompt. ValueError if a prompt is longer.
    """
    longest = max(cond.lengths, default=0)
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"a prompt of {longest} tokens does not fit into {length}; pad to at least its length")
    device = cond.states.device
    mask = torch.arange(length, device=device) < torch.tensor(cond.lengths, device=device)[:, None]
    states = cond.states.new_zeros(*mask.shape, *cond.states.shape[1:])
    states[mask] = cond.states
    return states, mask


def _boolean(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    keep = mask == 1
    if mask.is_floating_point() or not torch.equal(keep, mask != 0):
        raise ValueError(
            f"a mask of {mask.dtype} with values such as {mask.unique()[:3].tolist()}; "
            "give a boolean mask that is True at valid tokens, or integers 0 and 1"
        )
    return keep
