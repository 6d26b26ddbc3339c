"""Sentence vectors: unit length, the same in any company, and like the reference library's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cookgen.errors import ModelError
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder

TEXTS = ["Whisk the eggs.", "Beat two eggs in a bowl.", "The car is parked outside.", "", "salt " * 1000, "Ærø 塩 \x00"]


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return load_text_embedder("all-minilm-l6-v2")


def test_rows_are_unit_float32(embedder: TextEmbedder) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.embed([]).shape == (0, 384)


def test_a_text_does_not_depend_on_its_company(embedder: TextEmbedder) -> None:
    together = embedder.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert embedder.embed([text])[0].tobytes() == vector.tobytes()
    assert embedder.embed(TEXTS[::-1])[::-1].tobytes() == together.tobytes()


def test_like_meanings_are_near(embedder: TextEmbedder) -> None:
    whisk, beat, car = embedder.embed(TEXTS[:3])
    assert whisk @ beat > 0.5 > 0.3 > whisk @ car


def test_parity_with_sentence_transformers(embedder: TextEmbedder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the reference library is not installed")
    from cookgen.modelstore import resolve

    reference = library.SentenceTransformer(str(resolve("all-minilm-l6-v2").path), device="cpu")
    expected = reference.encode(TEXTS[:5], normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed(TEXTS[:5]), expected, atol=2e-5)


def test_files_that_are_no_encoder_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=f"{tmp_path}.*sentence encoder"):
        load_text_embedder(str(tmp_path))
