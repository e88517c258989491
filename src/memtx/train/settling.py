"""Giving every process the numbers of the first one."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def unsettled(module: nn.Module, *, without: set[int]) -> list[Tensor]:
    """Give parameters and buffers, each once, but not what is sharded already.

    Args:
        module: whose.
        without: identities of tensors to leave out.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return [each for each in tensors if not isinstance(each, DTensor) and id(each) not in without]


@torch.no_grad()
def settle(tensors: Iterable[Tensor], *, device: torch.device) -> None:
    """Move tensors to a device, in place, and give them the numbers of the first process.

    Args:
        tensors: in one order in all processes; on the meta device only in others than the first.
        device: of this process.
    """
    for tensor in tensors:
        if tensor.is_meta:
            empty = torch.empty_like(tensor, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            # The tensor stays the same object: whoever shares it has the new numbers as well.
            torch.utils.swap_tensors(tensor, made)
        else:
            tensor.data = tensor.data.to(device).contiguous()
        dist.broadcast(tensor.data, src=0)
