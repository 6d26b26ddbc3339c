"""Where a director's weights come from: a language model and its tokenizer, LoRA, checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file

from cookgen.config import to_values
from cookgen.director.attention import PACKED
from cookgen.director.config import DirectorConfig, LanguageModelConfig, Shape
from cookgen.director.model import Director, Embeddings
from cookgen.errors import InputError, ModelError, ShapeError, UsageError, reason_of
from cookgen.files import file_sha256, write_atomic
from cookgen.modelstore import ResolvedModel, identity, resolve
from cookgen.pretrained import LIBRARY_ERRORS, add_lora, model_errors

DESCRIPTION = "director.json"
_ARCHITECTURE = "language_model"
_TOKENIZER = "tokenizer"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}  # a folder's own code is never run, nor asked about

# Sizes of the language models that the presets are for: model type and what its configuration says.
_SHAPES: Mapping[Shape, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-7b": (
        "qwen2",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    ),
    "llama2-7b": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    ),
}


def load_language_model(config: LanguageModelConfig, *, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of transformers, LoRA in place where asked for; on the CPU.

    Raises ModelError where the files are not those of one, or not of the configured shape; UsageError without a name.
    """
    if config.random:
        model = _from_architecture(shape_of(config.shape), dtype=dtype)
    else:
        found = _found(config)
        with model_errors(config.name):
            model = _pretrained(found, dtype)
        _check_shape(config, model.config.get_text_config())
        _check_logits(config, model.config.get_text_config())
    with model_errors(config.name):
        return _adapted(model, config)


def load_tokenizer(config: LanguageModelConfig) -> Any:
    """The tokenizer of the model. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    folder, options = _place(_found(config))
    with model_errors(config.name):
        return AutoTokenizer.from_pretrained(folder, **_LOCAL, **options)


def shape_of(shape: Shape) -> Any:
    """The transformers configuration of a named shape."""
    from transformers import AutoConfig

    kind, values = _SHAPES[shape]
    return AutoConfig.for_model(kind, max_position_embeddings=32768, **values)


def architecture_of(config: LanguageModelConfig) -> Any:
    """The transformers configuration of the language (not the vision) part. Reads no weights."""
    return _architecture(config).get_text_config()


def empty_language_model(config: LanguageModelConfig) -> Any:
    """The model without storage (on torch's meta device), LoRA in place: for counting.

    Reads no weights, and of a named shape no file: --plan comes before a download.
    """
    architecture = _architecture(config) if config.shape == "checkpoint" else shape_of(config.shape)
    with torch.device("meta"):
        return _adapted(_from_architecture(architecture, dtype=torch.float32), config)


def origin_of(config: LanguageModelConfig) -> str:
    """What the weights are: the model's id@revision, or "random"."""
    if config.random:
        return "random"
    _check_named(config)
    return identity(config.name)


def _architecture(config: LanguageModelConfig) -> Any:
    from transformers import AutoConfig

    if config.random:
        return shape_of(config.shape)
    folder, options = _place(_found(config))
    with model_errors(config.name):
        return AutoConfig.from_pretrained(folder, **_LOCAL, **options)


@dataclass(frozen=True)
class Encoded:
    """Whose embeddings z are: the features' name, and what features.json says of their encoder."""

    name: str
    model: str
    revision: str
    config: Mapping[str, Any]
    encoder_model: str | None  # what the user called the encoder's model, None where it has one of its own


@dataclass(frozen=True)
class LoadedDirector:
    """A director read from a checkpoint, and what it needs to write.

    language_model: the identity of what it was trained from, or "random". step: of the training.
    """

    director: Director
    tokenizer: Any
    features: Encoded | None
    language_model: str
    step: int


def save_description(
    folder: Path,
    director_config: DirectorConfig,
    language_model: Any,
    tokenizer: Any,
    embeddings: Embeddings | None,
    features: Encoded | None,
) -> None:
    """Writes what a checkpoint needs beside its weights: director.json, the tokenizer, the language model's shape."""
    values = {
        "config": to_values(director_config),
        "embeddings": None if embeddings is None else asdict(embeddings),
        "features": None if features is None else asdict(features),
        "dtype": str(language_model.get_input_embeddings().weight.dtype).removeprefix("torch."),  # LoRA's frozen base
        "language_model": origin_of(director_config.language_model),
    }
    # Not canonical JSON: it would round the means of z.
    write_atomic(folder / DESCRIPTION, json.dumps(values, sort_keys=True, allow_nan=False))
    tokenizer.save_pretrained(folder / _TOKENIZER)
    language_model.config.save_pretrained(folder / _ARCHITECTURE)


def load_director(checkpoint: Path, *, use_ema: bool = True) -> LoadedDirector:
    """A director from a checkpoint folder, or from a run's folder: its best checkpoint, without one its last.

    use_ema: the averaged weights where the checkpoint has them. Raises InputError where it is no whole checkpoint,
    ModelError where the language model that it builds on is not there or is another one.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = checkpoint_folder(checkpoint)
    try:
        values = json.loads((folder / DESCRIPTION).read_bytes())
        config = TypeAdapter(DirectorConfig).validate_python(values["config"])
        embeddings = TypeAdapter(Embeddings | None).validate_python(values["embeddings"])
        features = TypeAdapter(Encoded | None).validate_python(values["features"])
        base, dtype = str(values["language_model"]), values["dtype"]
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype {dtype!r}")
        state = json.loads((folder / "state.json").read_bytes())
        step = int(state["step"])
        tokenizer = AutoTokenizer.from_pretrained(folder / _TOKENIZER, **_LOCAL)
        architecture = AutoConfig.from_pretrained(folder / _ARCHITECTURE, **_LOCAL)
        averaged = folder / "ema.safetensors"
        chosen = averaged if use_ema and averaged.is_file() else folder / "model.safetensors"
        for name, expected in dict(state.get("sha256s", {})).items():
            if name in (DESCRIPTION, chosen.name) and file_sha256(folder / name) != expected:
                raise ValueError(f"{name}: its sha256 is not {expected}, which state.json lists")
        weights = load_file(chosen)
        lora = config.language_model.lora_rank
        if not lora:
            language_model = _adapted(_from_architecture(architecture, dtype=torch.float32), config.language_model)
        elif base == "random":
            raise ValueError("LoRA over random weights, which no checkpoint holds: for benchmarks only")
        elif (here := identity(config.language_model.name)) != base:
            raise ModelError(
                f"{folder}: builds on {base}, but {config.language_model.name} is {here} here; give the same files "
                "their old place"
            )
        else:
            language_model = load_language_model(config.language_model, dtype=getattr(torch, dtype))
        director = Director(config, language_model, embeddings)
    except (*LIBRARY_ERRORS, OverflowError, SafetensorError, StrictDataclassError, ShapeError) as error:
        raise InputError(
            f"{folder}: not a whole checkpoint of a director ({reason_of(error)}). "
            "Give the run's folder, or one of its checkpoints/step-…"
        ) from error
    try:
        missing, unexpected = director.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"{folder}: its weights do not fit its {DESCRIPTION}: {reason_of(error)}") from error
    needed = {name for name, weight in director.named_parameters() if weight.requires_grad}
    if unexpected or needed & set(missing):
        wrong = sorted([*unexpected, *(needed & set(missing))])
        raise InputError(f"{folder}: its weights do not fit its {DESCRIPTION}: {', '.join(wrong[:3])} …")
    for name, weight in language_model.named_parameters():
        if "lora_" in name:  # as autocast has them in training
            weight.data = weight.data.to(getattr(torch, dtype))
    return LoadedDirector(director.eval(), tokenizer, features, base, step)


def checkpoint_folder(path: Path) -> Path:
    """The checkpoint that a path means. Raises InputError where there is none."""
    if (path / DESCRIPTION).is_file():
        return path
    best, found = path / "best.json", sorted((path / "checkpoints").glob("step-*"))
    if best.is_file():
        try:
            step = int(json.loads(best.read_bytes())["step"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{best}: not readable ({reason_of(error)}); give one of {path}/checkpoints") from error
        found = [item for item in found if item.name == f"step-{step:08d}"] or found
    if not found:
        raise InputError(
            f"{path}: no checkpoint of a director there: neither {DESCRIPTION} nor checkpoints/step-…. "
            "Give --checkpoint the --out of a cookgen-train run"
        )
    return found[-1]


def _found(config: LanguageModelConfig) -> ResolvedModel:
    _check_named(config)
    return resolve(config.name)


def _check_named(config: LanguageModelConfig) -> None:
    if not config.name:
        raise UsageError(
            "model.language-model.name: this preset has no weights of its own; name a folder or a repository of the "
            "hub at a commit, organisation/name@<40 hex digits>"
        )


def _place(found: ResolvedModel) -> tuple[Path, dict[str, Any]]:
    """The arguments of from_pretrained for a folder, or for a single GGUF file."""
    if found.path.is_file():
        return found.path.parent, {"gguf_file": found.path.name}
    return found.path, {}


def _pretrained(found: ResolvedModel, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GgufConfig

    folder, options = _place(found)
    architecture = AutoConfig.from_pretrained(folder, **_LOCAL, **options)
    if "gguf_file" in options:
        options["quantization_config"] = GgufConfig(dequantize=True)
    kind = AutoModelForCausalLM
    if architecture.get_text_config() is not architecture:
        kind = AutoModelForImageTextToText
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar of converting GGUF heeds no setting
        model = kind.from_pretrained(folder, dtype=dtype, **_LOCAL, **options)
    return _language_part(model)


def _language_part(model: Any) -> Any:
    """Of a vision-language model without its eyes: z comes from features."""
    body = model.base_model
    for part in ("visual", "vision_tower", "vision_model"):
        if hasattr(body, part):
            setattr(body, part, None)
    return model


def _from_architecture(architecture: Any, *, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForCausalLM if architecture.get_text_config() is architecture else AutoModelForImageTextToText
    return _language_part(kind.from_config(architecture, dtype=dtype))


def _adapted(model: Any, config: LanguageModelConfig) -> Any:
    if not model._supports_sdpa:
        raise ModelError(
            f"{config.name}: its layers take no mask of who sees whom (as Mamba's); choose another language model, for "
            "example SmolLM2, Qwen2.5, Qwen3 or Llama"
        )
    model.set_attn_implementation(PACKED)
    if config.lora_rank:
        model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
    return model


def _check_shape(config: LanguageModelConfig, found: Any) -> None:
    if config.shape == "checkpoint":
        return
    for name, value in _SHAPES[config.shape][1].items():
        if name != "vocab_size" and getattr(found, name, None) != value:
            raise ModelError(
                f"{config.name}: its {name} is {getattr(found, name, None)}, shape {config.shape!r} has {value}; give "
                "shape=checkpoint to take it as it is"
            )


def _check_logits(config: LanguageModelConfig, found: Any) -> None:
    """A director's logits are the output embeddings' products alone."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"):
        if (value := getattr(found, name, None)) not in (None, 1):
            raise ModelError(
                f"{config.name}: its logits are changed by {name}={value} (as Gemma 2, Granite and Cohere do), which a "
                "director does not do; choose another language model, for example SmolLM2, Qwen2.5, Qwen3 or Llama"
            )
