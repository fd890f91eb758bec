"""Starting weights for training from scratch."""

import torch
from torch import nn

from krea_model.mmdit import MMDiT

__all__ = ["initialise"]


@torch.no_grad()
def initialise(model: MMDiT, seed: int) -> MMDiT:
    """Every block begins as the identity with open gates and the output as zero; the rest has variance 1 / fan-in.

    Norm scales stay at zero, where the zero-centred norm is plain. Returns the model.
    """
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 2 and not name.endswith(".lin"):
            p.copy_(torch.randn(p.shape, generator=draw) * p.shape[1] ** -0.5)
        else:
            p.zero_()
    for block in [*model.blocks, *model.txtfusion.layerwise_blocks, *model.txtfusion.refiner_blocks]:
        block.attn.wo.weight.zero_()
        block.mlp.down.weight.zero_()
    for block in model.blocks:
        table = block.mod.lin.view(6, -1)
        table[2], table[5] = 1, 1  # the two gates
    model.txtfusion.projector.weight.fill_(model.config.txtlayers**-0.5)
    for layer in (model.last.linear, model.tproj[1]):
        assert isinstance(layer, nn.Linear)
        layer.weight.zero_()
    return model
