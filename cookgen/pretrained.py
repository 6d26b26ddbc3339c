"""Loading pretrained networks: what transformers and diffusers raise for their files, as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
