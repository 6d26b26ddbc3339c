"""A GGUF file as a folder of transformers' files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cookgen.errors import ModelError
from cookgen.files import file_sha256
from cookgen.modelstore import resolve
from cookgen.pretrained import unpacked_gguf


def test_a_file_that_is_no_gguf_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"broken\.gguf: cannot be loaded"):
        unpacked_gguf(broken, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(ModelError, match=r"missing\.gguf: cannot be unpacked"):
        unpacked_gguf(tmp_path / "missing.gguf", tmp_path / "cache")


def test_what_was_unpacked_once_is_found_by_its_bytes(tmp_path: Path) -> None:
    for name in ("one.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"the same bytes")
    made = tmp_path / "cache" / file_sha256(tmp_path / "one.gguf")
    made.mkdir(parents=True)
    assert unpacked_gguf(tmp_path / "one.gguf", tmp_path / "cache") == made
    assert unpacked_gguf(tmp_path / "other.gguf", tmp_path / "cache") == made


@pytest.mark.full
def test_the_weights_are_those_that_the_gguf_package_reads(tmp_path: Path) -> None:
    import gguf
    from safetensors import safe_open
    from transformers import AutoTokenizer

    path = resolve("smollm2-135m-instruct").path
    folder = unpacked_gguf(path, tmp_path)
    expected = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name in ("token_embd.weight", "blk.29.ffn_down.weight", "output_norm.weight")
    }
    with safe_open(folder / "model.safetensors", "numpy") as found:
        for theirs, ours in {
            "token_embd.weight": "model.embed_tokens.weight",
            "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",
            "output_norm.weight": "model.norm.weight",
        }.items():
            np.testing.assert_array_equal(found.get_tensor(ours), expected[theirs])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Stir."}], tokenize=False)
    assert "<|im_start|>user\nStir.<|im_end|>" in asked
