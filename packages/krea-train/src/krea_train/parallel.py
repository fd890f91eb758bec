"""One model on many devices: mesh, FSDP2 per block, a gradient clip that knows meshes, and gathering for checkpoints.

Everything here also works, as plain single-process code, when torch.distributed is not initialised.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["agree", "clip_grad_norm", "full", "local", "mesh", "over_ranks", "place", "rank", "shard", "world"]


def rank() -> int:
    """This process's number; 0 when there is one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agree(value: int) -> int:
    """The largest value of any rank; the same answer everywhere. Waits for all ranks; free with one."""
    if world() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def over_ranks(values: Tensor) -> Tensor:
    """Mean over the ranks where a value is a number, elementwise; all ranks must call."""
    if world() == 1:
        return values
    rows = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(rows, values)
    return torch.stack(rows).nanmean(0)


def mesh(device: str = "cpu", *, replicas: int = 1) -> DeviceMesh:
    """All ranks as (replicate, shard) for HSDP, or as (shard,) with one replica."""
    if world() % replicas:
        raise ValueError(f"{world()} ranks do not divide into {replicas} replicas; choose a divisor")
    if replicas == 1:
        return init_device_mesh(device, (world(),), mesh_dim_names=("shard",))
    return init_device_mesh(device, (replicas, world() // replicas), mesh_dim_names=("replicate", "shard"))


def shard(model: nn.Module, mesh: DeviceMesh, *, compute: torch.dtype | None = None) -> nn.Module:
    """Shard in place with FSDP2, one unit per child of every ModuleList and one for the rest.

    `compute` casts the gathered weights; gradients are reduced and averaged over ranks in fp32. Build the optimizer
    and the average afterwards: they follow the placement of the parameters.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32 if compute else None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for unit in module:
                fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale all gradients so that their global norm is at most `limit`; returns the norm before, never synchronises.

    Gradients may be plain tensors and DTensors of several meshes; the stock function refuses such mixtures. The norm
    is not finite if any gradient is not.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        raise ValueError("no parameter has a gradient; does the loss depend on the trained parameters?")
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for grad in grads:
        groups.setdefault(grad.device_mesh if isinstance(grad, DTensor) else None, []).append(grad)
    norms = [full(nn.utils.get_total_norm(group, foreach=True)) for group in groups.values()]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if limit is not None:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], factor)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every rank (all ranks must call); a plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def place(source: Tensor, target: Tensor) -> None:
    """Copy a whole tensor into a plain or sharded one of the same shape."""
    if source.shape != target.shape:
        raise ValueError(f"a tensor of shape {tuple(source.shape)} does not fit one of {tuple(target.shape)}")
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)
