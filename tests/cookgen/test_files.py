"""The ground floor's files: canonical JSON, names of narratives, atomic writes."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.files import MAX_NAME, atomic_path, canonical_json, digest, file_sha256, narrative_name, write_atomic

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6))
def test_canonical_json_has_one_order(value: dict[str, int]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
    assert digest(value) == hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def test_canonical_json_spelling() -> None:
    assert canonical_json({"b": 1, "a": [0.1 + 0.2, -0.0, 1e-9, 2.0]}) == '{"a":[0.3,0.0,0.0,2.0],"b":1}'
    assert canonical_json("Crème brûlée") == '"Crème brûlée"'
    assert canonical_json((1, 2)) == "[1,2]"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_canonical_json_refuses_what_is_no_number(number: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        canonical_json({"a": [number]})


def test_a_plain_id_keeps_its_name() -> None:
    assert narrative_name("youcook2", "GLd3aX16zBg") == "youcook2-GLd3aX16zBg"
    assert narrative_name("youcook2", "-_a-B_9") == "youcook2--_a-B_9"
    assert narrative_name("folder", "a" * (MAX_NAME - 7)) == "folder-" + "a" * (MAX_NAME - 7)


def test_other_ids_carry_the_digest_of_the_original() -> None:
    def ten(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    assert narrative_name("folder", "my cake/part 1") == f"folder-my-cake-part-1-{ten('my cake/part 1')}"
    assert narrative_name("folder", "ça  va?!") == f"folder--a-va--{ten('ça  va?!')}"
    long = "x" * (MAX_NAME - 6)
    assert narrative_name("folder", long) == f"folder-{'x' * 80}-{ten(long)}"
    assert narrative_name("folder", "a", clash_path="a.mp4") == f"folder-a-{ten('a.mp4')}"
    assert narrative_name("folder", "") == f"folder--{ten('')}"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200))
def test_every_name_is_safe_and_short(video_id: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", narrative_name("howto100m", video_id))


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), unique=True, max_size=20))
def test_different_ids_have_different_names(ids: list[str]) -> None:
    assert len({narrative_name("folder", video_id) for video_id in ids}) == len(ids)


def test_write_atomic_leaves_a_whole_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.json"
    write_atomic(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_atomic(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(path.parent.iterdir()) == [path]
    assert file_sha256(path) == hashlib.sha256(b"\0").hexdigest()


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_atomic(path, "old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_path(path) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".tar"
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"
