"""Several processes train one network on the same batches: each takes its share of every batch.

Started by ``torchrun``, which sets RANK, WORLD_SIZE and LOCAL_RANK. All processes draw the same random numbers, load
the same data and hold the same weights; after each backward pass gradients are averaged, weighted by the size of the
shares, so that one step is the step of one process on the whole batch, except that batch norm normalises within a
share, as it does in torch's DistributedDataParallel. That class is not used: it hooks into single parameters to send some gradients
while others are computed, which pays off for networks of hundreds of megabytes; here one reduction of all gradients
after the backward pass is as fast, is the same for any module, compiled or not, and keeps the running statistics of
batch norms, averaged as well, equal in all processes at all times.

Only the first process writes files (training/checkpoint.py, training/progress.py); all read them, so that OUT must be a
folder that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor, nn

from hce_engine.errors import UnsupportedError


def share() -> tuple[int, int]:
    """(rank, number of processes) of this process; (0, 1) without torchrun, whatever else sets these variables."""
    if not torch.distributed.is_torchelastic_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return share()[0] == 0


def device_of(kind: str) -> torch.device:
    """The device of this process: with several processes on a machine, each has a CUDA device of its own.

    Raises UnsupportedError when there is none for it.
    """
    if kind != "cuda":
        return torch.device(kind)
    number = int(os.environ["LOCAL_RANK"]) if share()[1] > 1 else 0
    if number >= torch.cuda.device_count():
        raise UnsupportedError("training", expected=f"CUDA device {number} for process {number} of this machine",
                               got=f"{torch.cuda.device_count()} devices",
                               fix="use --device cpu, or start fewer processes")
    return torch.device("cuda", number)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the block the processes can exchange tensors of ``device``; nothing happens for a process alone."""
    if share()[1] == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def wait_for_all() -> None:
    """Returns when every process has called it."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


@torch.no_grad()
def spread(module: nn.Module) -> None:
    """Gives every process the first one's parameters and buffers."""
    if torch.distributed.is_initialized():
        for tensor in module.state_dict().values():
            whole = tensor.contiguous()
            torch.distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def agreed(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The first process's values, for all; the keys are everywhere the same."""
    if not torch.distributed.is_initialized():
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.broadcast(tensor, 0)
    return dict(zip(values, tensor.tolist(), strict=True))


def add_up(tensor: Tensor) -> None:
    """Replaces ``tensor`` by its sum over the processes."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)


@torch.no_grad()
def average(module: nn.Module, count: int) -> None:
    """Replaces gradients and the statistics of training batch norms by averages weighted by ``count``, the images here.

    A process's loss is the mean over its own images; sum_r n_r g_r / sum_r n_r is the gradient of the mean over all.
    """
    if not torch.distributed.is_initialized():
        return
    tensors = [p.grad for p in module.parameters() if p.grad is not None] + _statistics(module)
    flat = torch.cat([t.flatten() for t in tensors] + [tensors[0].new_ones(1)]) * count
    torch.distributed.all_reduce(flat)
    _copy_back(flat[:-1] / flat[-1], tensors)


def _statistics(module: nn.Module) -> list[Tensor]:
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    return [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]


def _copy_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for part, tensor in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))
