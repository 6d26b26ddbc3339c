"""Pretrained networks: what transformers and diffusers raise for their files, as our errors; LoRA beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cookgen.errors import ModelError, reason_of

# What libraries raise for files that are none of theirs, or damaged.
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


@contextmanager
def model_errors(name: str) -> Iterator[None]:
    """Turns what transformers and diffusers raise for files that they cannot load into ModelErrors; they stay quiet."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # it would tear the progress lines of whoever loads it
    try:
        yield
    except (*LIBRARY_ERRORS, SafetensorError, StrictDataclassError) as error:
        raise ModelError(f"{name}: cannot be loaded: {reason_of(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def add_lora(model: Any, *, rank: int, alpha: int, dropout: float) -> Any:
    """The model with LoRA, in float32, on every linear layer but the output's; it alone is trained, all else frozen."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    model = inject_adapter_in_model(lora, model)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # autocast does it, without float32 copies of a bf16 base's activations: a twelfth of a 7B update
            module.cast_input_dtype_enabled = False
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model
