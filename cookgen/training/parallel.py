"""One model on many devices: the same model wherever it runs, replicated (DDP) or sharded layer by layer (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from cookgen.errors import UsageError
from cookgen.training.config import TrainingConfig

_TIMEOUT = timedelta(hours=2)  # how long ranks wait for rank 0, which writes and hashes checkpoints


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Joins the ranks that torchrun, `accelerate launch` or Ray started, on GPUs where there are some.

    Raises UsageError for a precision that the device has not, or a launcher that would shard by itself.
    """
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision={"fp32": "no", "bf16": "bf16"}[config.precision],
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=_TIMEOUT),
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
    except ValueError as error:
        raise UsageError(f"precision={config.precision}: {error}") from error
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UsageError(
            f"accelerate launch: is set to {accelerator.distributed_type.value}; choose multi-GPU there, and shard the "
            "model with fsdp=True"
        )
    return accelerator


def prepare(
    model: nn.Module, accelerator: Accelerator, config: TrainingConfig, block_classes: tuple[type, ...]
) -> nn.Module:
    """The model on its device, as the configuration says. Its trained weights are float32, whatever they came in."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    blocks = [module for module in model.modules() if isinstance(module, block_classes)]
    if config.compile:
        for block in blocks:
            block.forward = torch.compile(block.forward)
    if config.activation_checkpointing:
        apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, block_classes))
    if not (config.fsdp and accelerator.num_processes > 1):
        replicated: nn.Module = accelerator.prepare_model(model)
        return replicated
    # accelerate's own FSDP2 knows GPUs alone; this is the same on any device.
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reduced = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = reduced if config.precision == "bf16" else MixedPrecisionPolicy()
    for module in (*blocks, model):
        # Not kept gathered after a forward, the root neither: the mean of the weights may be swapped in or out next.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


@contextmanager
def synced(model: nn.Module, is_last: bool) -> Iterator[None]:
    """Inside, a backward pass sums gradients over the ranks only for the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield
