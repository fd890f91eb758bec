"""Starting weights for training from scratch."""

import torch

from krea_model.mmdit import MMDiT

__all__ = ["initialise"]

SILENT = ("attn.wo.weight", "mlp.down.weight", "last.linear.weight", "tproj.1.weight")


@torch.no_grad()
def initialise(model: MMDiT, seed: int) -> MMDiT:
    """Every block begins as the identity with open gates and the output as zero; the rest has variance 1 / fan-in.

    Norm scales stay at zero, where the zero-centred norm is plain. Returns the model.
    """
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        p.zero_()
        if name == "txtfusion.projector.weight":
            p.fill_(p.shape[1] ** -0.5)
        elif name.endswith(".mod.lin"):
            p.view(6, -1)[[2, 5]] = 1  # the two gates
        elif p.ndim == 2 and not name.endswith((*SILENT, ".lin")):
            p.copy_(torch.randn(p.shape, generator=draw) * p.shape[1] ** -0.5)
    return model
