"""Pretrained networks: what transformers and diffusers raise for their files, as our errors; GGUF unpacked; LoRA."""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from cookgen.errors import ModelError, reason_of
from cookgen.files import file_sha256

# What libraries raise for files that are none of theirs, or damaged.
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, struct.error)


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


def unpacked_gguf(path: Path, cache: Path | None = None) -> Path:
    """A folder of transformers' files with the language model of a GGUF file, its weights dequantized to float32.

    For servers and libraries that read no GGUF, as vLLM. Made once, in a minute for 135 M parameters: the folder lies
    in `cache` (default ~/.cache/cookgen/unpacked) under the file's sha256, and takes four bytes a parameter.
    Raises ModelError where the file is no GGUF that transformers can read, or the cache cannot be written.
    """
    cache = cache or Path.home() / ".cache" / "cookgen" / "unpacked"
    try:
        folder = cache / file_sha256(path)
        if folder.is_dir():
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            made = Path(unfinished) / "model"
            with model_errors(str(path)):
                parts = _read_gguf(path)
            for part in parts:
                part.save_pretrained(made)
            os.sync()  # what has its name is whole, also after a power cut
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be unpacked into {cache}: {reason_of(error)}") from error
    return folder


def _read_gguf(path: Path) -> tuple[Any, Any]:
    """The tokenizer and the model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    with redirect_stderr(io.StringIO()):  # the progress bar of converting GGUF heeds no setting
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
        )
    return tokenizer, model


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
