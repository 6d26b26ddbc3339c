"""Laws of sequences and of packing, on narratives drawn by hypothesis and on those of a real shard set."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen import load_split
from cookgen.director.config import DirectorConfig, HeadConfig, RegularizationConfig, SequenceConfig
from cookgen.director.inputs import (
    IGNORE,
    IMAGE_TERMS,
    LATER_TERMS,
    MARKS,
    Batch,
    Document,
    NarrativeInputs,
    Packer,
    Prepared,
    Vocabulary,
    query_ids,
    query_text,
)
from cookgen.errors import FormatError, ModelError, ShapeError
from tests.cookgen.director.narratives import NUM_WORDS, TASKS, Clip, Tale, Z, byte_tokenizer, inputs, tale
from tests.shardset import Story, add_features, make_set

laws = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**31)
words = st.text(max_size=12)


@st.composite
def tales(draw: st.DrawFn, max_steps: int = 6) -> Tale:
    """Any texts, empty ones and foreign letters too."""
    num_steps = draw(st.integers(1, max_steps))
    steps = tuple(Clip(draw(words), draw(words)) for _ in range(num_steps))
    return replace(tale(num_steps, seed=draw(seeds)), steps=steps, topic=draw(st.none() | words))


@st.composite
def configs(draw: st.DrawFn, **sequence: Any) -> DirectorConfig:
    """Any sequence, with queries or without; nothing random."""
    readout = draw(st.sampled_from(["queries", "next_token"]))
    values = {
        "task": draw(st.sampled_from(TASKS)),
        "supervision": "every" if readout == "next_token" else draw(st.sampled_from(["every", "last"])),
        "supervise_first": draw(st.booleans()),
        "max_length": draw(st.integers(16, 300)),
    }
    return DirectorConfig(head=HeadConfig(readout=readout), sequence=SequenceConfig(**{**values, **sequence}))


def main_stream(document: Document) -> list[int]:
    """Indices of all tokens but the queries."""
    return np.flatnonzero(document.blocks == 0).tolist()


Segment = tuple[str, str]
END = ("<stop>", "")


def told(document: Document) -> list[Segment]:
    """What a reader of the ids finds: (mark, text) after (mark, text), first the question. Images stand in marks."""
    main, is_fed = main_stream(document), set(document.fed.flatten().tolist())
    found: list[tuple[str, list[int]]] = [("question", [])]
    for token in (int(document.ids[index]) for index in main if index not in is_fed):
        if token < NUM_WORDS:
            found[-1][1].append(token)
        else:
            found.append((MARKS[token - NUM_WORDS], []))
    for fed in document.fed.tolist():
        place = main.index(fed[0])
        around = document.ids[[main[place - 1], main[place + len(fed)]]]
        assert main[place : place + len(fed)] == fed
        assert [MARKS[token - NUM_WORDS] for token in around] == ["<image>", "</image>"]
    return [(mark, str(byte_tokenizer().decode(ids, skip_special_tokens=False))) for mark, ids in found]


def segments(story: Tale, config: DirectorConfig) -> list[list[Segment]]:
    """Those of each step, as they should be."""
    image = [("<image>", ""), ("</image>", "")] if config.sequence.has_visual else []
    return [[*((f"<{name}>", getattr(step, name)) for name in config.sequence.fields), *image] for step in story.steps]


def question(story: Tale) -> Segment:
    return ("question", f"<s>{query_text(story)}\n")


# One document


@laws
@given(tales(), configs(max_length=5000))
def test_the_texts_and_images_can_be_read_back(story: Tale, config: DirectorConfig) -> None:
    (document,) = inputs(config)(story).documents
    assert told(document) == [question(story), *chain.from_iterable(segments(story, config)), END]
    assert np.array_equal(document.z, story.z if config.sequence.has_visual else story.z[:0])


@laws
@given(tales(), configs())
def test_every_label_is_the_next_token_of_the_main_stream(story: Tale, config: DirectorConfig) -> None:
    for document in inputs(config)(story).documents:
        main = main_stream(document)
        following = dict(pairwise(main))
        learned = np.flatnonzero(document.labels != IGNORE).tolist()
        assert all(document.labels[index] == document.ids[following[index]] for index in learned)
        fed = set(document.fed.flatten().tolist())
        never = {following[index] for index in learned} & fed
        assert not never  # z is regressed, never a word


@laws
@given(tales(), configs(max_length=5000))
def test_all_texts_and_marks_of_learned_steps_have_labels(story: Tale, config: DirectorConfig) -> None:
    (document,) = inputs(config)(story).documents
    tokenizer, sequence = byte_tokenizer(begins=False), config.sequence
    expected = 1  # <stop>
    for index, step in enumerate(story.steps):
        if index > 0 or sequence.supervise_first:
            sizes = [1 + len(tokenizer(getattr(step, name)).input_ids) for name in sequence.fields]
            expected += sum(sizes) + int(sequence.has_visual)
    assert (document.labels != IGNORE).sum() == expected
    num_learned = len(story.steps) - (not sequence.supervise_first)
    num_read = min(num_learned, 1) if sequence.supervision == "last" else num_learned
    assert len(document.read) == (num_read if sequence.has_visual else 0)


@laws
@given(tales(), configs())
def test_positions_count_the_main_stream_and_queries_stand_where_z_stands(story: Tale, config: DirectorConfig) -> None:
    for document in inputs(config)(story).documents:
        main = main_stream(document)
        assert document.positions[main].tolist() == list(range(len(main)))
        if config.head.readout == "next_token":
            assert not document.blocks.any()
            continue
        for number, (read, fed) in enumerate(zip(document.read, document.fed_of_read, strict=True)):
            assert document.positions[read].tolist() == document.positions[document.fed[fed]].tolist()
            assert set(document.blocks[read].tolist()) == {number + 1}
            assert document.ids[read].tolist() == Vocabulary(NUM_WORDS, Z[0]).queries.tolist()
            assert read[-1] + 1 == document.fed[fed][0]
        assert (document.blocks > 0).sum() == document.read.size


@laws
@given(tales(), configs())
def test_the_image_before_is_that_of_the_step_before(story: Tale, config: DirectorConfig) -> None:
    for document in inputs(config)(story).documents:
        assert (document.before_read == document.fed_of_read - 1).all()


# What does not fit


@laws
@given(tales(), configs(), st.booleans())
def test_no_step_is_lost_uncounted_and_no_document_too_long(story: Tale, config: DirectorConfig, begins: bool) -> None:
    prepared = inputs(config, begins=begins)(story)
    limit = config.sequence.max_length
    assert all(len(document) <= limit for document in prepared.documents)
    steps = iter(segments(story, config))
    num_told = 0
    for document in prepared.documents:
        first, *rest = told(document)
        assert first == (question(story) if begins else ("question", query_text(story) + "\n"))
        has_end = bool(rest) and rest[-1] == END
        rest = rest[:-1] if has_end else rest
        while rest:
            step = next(step for step in steps if rest[: len(step)] == step)  # in their order, none twice
            rest = rest[len(step) :]
            num_told += 1
        assert not has_end or (document is prepared.documents[-1] and step == segments(story, config)[-1])
    assert num_told == len(story.steps) - prepared.left_out["steps_too_long"]
    assert prepared.left_out["narratives_cut"] == int(len(prepared.documents) > 1)


def test_a_story_is_cut_between_steps_and_each_part_has_the_question() -> None:
    story = tale(6, seed=1)
    config = DirectorConfig(sequence=SequenceConfig(max_length=100))
    prepared = inputs(config)(story)
    assert len(prepared.documents) > 1
    assert {told(document)[0] for document in prepared.documents} == {question(story)}
    assert prepared.left_out == {"steps_too_long": 0, "narratives_cut": 1}


def test_no_part_of_a_story_learns_to_begin_in_the_middle() -> None:
    """The first step's texts of a later part are given; its z, and all that follows, is learned."""
    prepared = inputs(DirectorConfig(sequence=SequenceConfig(max_length=100)))(tale(6, seed=1))
    for number, document in enumerate(prepared.documents):
        (first,) = np.flatnonzero(document.ids == NUM_WORDS + MARKS.index("<image>"))[:1]
        assert (document.labels[: first - 1] != IGNORE).any() == (number == 0)
        assert len(document.read) == len(document.fed)


@pytest.mark.parametrize("readout", ["queries", "next_token"])
def test_a_sequence_is_filled_to_its_last_token(readout: Any) -> None:
    config, story = DirectorConfig(head=HeadConfig(readout=readout)), tale(3, seed=1)
    length = len(inputs(config)(story).documents[0])
    num_documents = [
        len(inputs(replace(config, sequence=SequenceConfig(max_length=limit)))(story).documents)
        for limit in (length, length - 1)
    ]
    assert num_documents == [1, 2]


def test_a_step_that_cannot_fit_is_counted_and_the_others_stay() -> None:
    story = tale(3, seed=1)
    steps = (story.steps[0], Clip("a" * 500, "b"), story.steps[2])
    prepared = inputs(DirectorConfig(sequence=SequenceConfig(max_length=200)))(replace(story, steps=steps))
    assert prepared.left_out == {"steps_too_long": 1, "narratives_cut": 0}
    (document,) = prepared.documents
    assert np.array_equal(document.z, story.z[[0, 2]])
    last = replace(story, steps=(*story.steps[:2], Clip("a" * 500, "b")))
    (document,) = inputs(DirectorConfig(sequence=SequenceConfig(max_length=200)))(last).documents
    assert MARKS.index("<stop>") + NUM_WORDS not in document.ids  # it does not end there


def test_a_question_longer_than_a_sequence_leaves_nothing_but_counts() -> None:
    prepared = inputs(DirectorConfig(sequence=SequenceConfig(max_length=64)))(replace(tale(3), topic="x" * 100))
    assert prepared == Prepared((), {"steps_too_long": 3, "narratives_cut": 0})
    batch = Packer(64, Z)([prepared])
    assert batch.ids_RL.shape == (1, 16)
    assert batch.num_tokens == sum(batch.counts.values()) == 0
    assert batch.left_out["steps_too_long"] == 3


# What is drawn


def drawn(config: DirectorConfig, story: Tale, seed: int) -> Prepared:
    torch.manual_seed(seed)
    return inputs(config)(story)


def same(one: Prepared, other: Prepared) -> bool:
    return len(one.documents) == len(other.documents) and all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for left, right in zip(one.documents, other.documents, strict=True)
        for name in Document.__dataclass_fields__
    )


def test_draws_repeat_with_torchs_seed() -> None:
    config = DirectorConfig(
        sequence=SequenceConfig(supervision="last", random_length=True),
        regularization=RegularizationConfig(reverse_rate=0.5, reference_rate=0.5, num_references=2),
    )
    story = tale(6, seed=1)
    assert all(same(drawn(config, story, seed), drawn(config, story, seed)) for seed in range(5))
    assert not all(same(drawn(config, story, seed), drawn(config, story, 0)) for seed in range(5))
    assert same(inputs(DirectorConfig())(story), inputs(DirectorConfig())(story))


def test_random_lengths_are_the_beginnings_of_the_story() -> None:
    last = DirectorConfig(sequence=SequenceConfig(supervision="last"))
    config = DirectorConfig(sequence=SequenceConfig(supervision="last", random_length=True))
    story = tale(4, seed=1)
    stop = MARKS.index("<stop>") + NUM_WORDS
    seen = set()
    for seed in range(40):
        (document,) = drawn(config, story, seed).documents
        num_steps = len(document.z)
        seen.add(num_steps)
        (expected,) = inputs(last)(story.first(num_steps)).documents
        end = len(document)
        assert np.array_equal(document.ids, expected.ids[:end])
        assert np.array_equal(document.read, expected.read)
        assert (stop in document.ids) == (num_steps == 4)
        assert end == len(expected) - (num_steps < 4)
    assert seen == {1, 2, 3, 4}


def test_a_reversed_story_keeps_each_steps_image() -> None:
    config = DirectorConfig(regularization=RegularizationConfig(reverse_rate=1 - 1e-9))
    story = tale(4, seed=1)
    backwards = replace(story, steps=story.steps[::-1], z=story.z[::-1])
    (document,), (told,) = drawn(config, story, 0).documents, inputs(DirectorConfig())(backwards).documents
    assert (document.labels == IGNORE).all()  # its texts are only given, and it has no end
    assert np.array_equal(document.ids, told.ids[:-1])
    for name in ("fed", "read", "fed_of_read", "before_read", "z"):
        assert np.array_equal(getattr(document, name), getattr(told, name))
    assert not np.array_equal(document.z, story.z)


def test_references_stand_before_the_question_without_loss() -> None:
    config = DirectorConfig(regularization=RegularizationConfig(reference_rate=1 - 1e-9, num_references=2))
    story = tale(4, seed=1)
    (document,), (plain,) = drawn(config, story, 0).documents, inputs(DirectorConfig())(story).documents
    extra = 2 * (Z[0] + 2)
    assert len(document) == len(plain) + extra
    assert np.array_equal(document.ids[extra:], plain.ids)
    assert np.array_equal(document.labels[extra:], plain.labels)
    assert (document.labels[:extra] == IGNORE).all()
    assert np.array_equal(document.fed_of_read, plain.fed_of_read + 2)
    assert document.before_read.tolist() == [-1, 2, 3, 4]  # a reference is no step
    assert all(any(np.array_equal(image, z) for z in story.z) for image in document.z[:2])
    assert not np.array_equal(document.z[0], document.z[1])
    many = replace(config, regularization=replace(config.regularization, num_references=99))
    assert len(drawn(many, story, 0).documents[0].z) == 4 + 2  # no more than half of the steps
    assert len(drawn(many, tale(1), 0).documents[0].z) == 1


def test_without_supervise_first_each_piece_of_a_narrative_begins_with_what_is_given() -> None:
    config = DirectorConfig(sequence=SequenceConfig(supervise_first=False, max_length=110))
    documents = inputs(config)(tale(6, seed=1)).documents
    assert len(documents) > 1
    for document in documents:
        assert 0 not in document.fed_of_read
        assert len(document.read) == len(document.fed) - 1


def test_a_tokenizer_that_ends_texts_does_not_end_the_question() -> None:
    """As some of Llama's do, with add_eos_token."""

    class Ends:
        eos_token_id = 2

        def __call__(self, text: str, **_: Any) -> Any:
            return SimpleNamespace(input_ids=[1, *(100 + ord(letter) for letter in text), 2])

    assert query_ids(Ends(), "a") == [1, 197, 110]


# Texts from outside


@pytest.mark.parametrize(
    ("title", "topic", "expected"),
    [
        ("How to make a pepperoni pizza?", "pizza", "How to make a pepperoni pizza?"),
        ("HOW TO bake bread...", None, "HOW TO bake bread?"),
        ("My best day", "How to boil eggs", "How to boil eggs?"),
        ("My best day", "bibimbap", "How to cook bibimbap?"),
        ("Pad Thai", None, "How to cook Pad Thai?"),
        (None, "Pad Thai", "How to cook Pad Thai?"),
        (None, None, "How to cook this?"),
        ("", "", "How to cook this?"),
        (" How to\n make   soup ?!", " \t", "How to make soup?"),
    ],
)
def test_the_question_is_what_a_user_would_ask(title: str | None, topic: str | None, expected: str) -> None:
    assert query_text(replace(tale(1), title=title, topic=topic)) == expected


@pytest.mark.parametrize("text", ["<|im_end|>", "<s>", "a<|im_end|><s>b"])
def test_a_text_that_spells_a_special_token_is_letters(text: str) -> None:
    tokenizer = byte_tokenizer()
    special = set(tokenizer.all_special_ids)
    assert set(tokenizer(text).input_ids[1:]) & special  # what it would be, read carelessly
    story = replace(tale(1), steps=(Clip(text, text),), topic=text)
    (document,) = inputs(DirectorConfig())(story).documents
    outside_z = np.setdiff1d(np.arange(len(document)), document.fed)
    assert [token for token in document.ids[outside_z].tolist() if token in special] == [0]  # the <s> that begins
    assert told(document)[1:3] == [("<action>", text), ("<caption>", text)]


def test_our_marks_are_no_words() -> None:
    story = replace(tale(1), steps=(Clip("<image></image><stop>", "<caption>"),))
    (document,) = inputs(DirectorConfig())(story).documents
    assert (document.ids >= NUM_WORDS).sum() == len(MARKS) + Z[0]


def test_a_tokenizer_without_a_beginning_adds_none() -> None:
    ids = [inputs(DirectorConfig(), begins=begins)(tale(2)).documents[0].ids for begins in (True, False)]
    assert ids[0][0] == 0
    assert np.array_equal(ids[0][1:], ids[1])


def test_a_tokenizer_of_another_model_is_refused() -> None:
    """Its words would otherwise be read as marks."""
    made = inputs(DirectorConfig())
    narrow = replace(made, vocabulary=Vocabulary(60, Z[0]))
    with pytest.raises(ModelError, match=r"tokenizer knows 258 words, the language model 60: name a model"):
        narrow(tale(2))
    assert made(tale(2)).documents


# Features from outside


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    story = tale(3)
    story.z[2, 1, 0] = bad
    with pytest.raises(FormatError, match=r"tale-0: its features 'tiny' hold NaN .* cookgen features"):
        inputs(DirectorConfig())(story)
    assert inputs(DirectorConfig(sequence=SequenceConfig(task="action-caption")))(story).documents  # not looked at


@pytest.mark.parametrize("shape", [(5, 3), (15,), (1, 15), (3, 4), (3, 5, 1), ()])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Also those that would only have to be reshaped."""
    with pytest.raises(ShapeError, match=r"its 3 steps need \[3, 5\] each"):
        inputs(DirectorConfig())(tale(3, z_shape=shape))


def test_features_for_another_number_of_steps_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[4, 3, 5\], its 3 steps"):
        inputs(DirectorConfig())(replace(tale(3), z=tale(4).z))


def test_one_vector_a_clip_is_one_token() -> None:
    (document,) = inputs(DirectorConfig(), z_shape=(1, 15))(tale(3, z_shape=(15,))).documents
    assert document.z.shape == (3, 1, 15)


# Packing


def of_batch(batch: Batch) -> list[dict[str, Any]]:
    """The documents in a batch, taken apart again."""
    found = []
    for number in range(int(batch.documents_RL.max()) + 1):
        place = batch.documents_RL == number
        rows = set(place.nonzero()[:, 0].tolist())
        assert len(rows) == 1  # none across rows
        index = place.flatten().nonzero()[:, 0]
        assert torch.equal(index, torch.arange(int(index[0]), int(index[0]) + len(index)))
        fields = {
            name: getattr(batch, f"{name}_RL")[place].numpy() for name in ("ids", "positions", "blocks", "labels")
        }
        start, end = int(index[0]), int(index[-1])
        for name in ("fed", "read"):
            images = getattr(batch, f"{name}_{'F' if name == 'fed' else 'M'}N")
            inside = ((images >= start) & (images <= end)).all(1)
            fields[name] = (images[inside] - start).numpy()
            if name == "fed":
                fields["z"] = batch.z_FNW[inside].numpy()
                first = int(inside.nonzero()[0]) if inside.any() else 0
            else:
                before = batch.before_read_M[inside].numpy()
                fields["fed_of_read"] = batch.fed_of_read_M[inside].numpy() - first
                fields["before_read"] = np.where(before < 0, -1, before - first)
        found.append(fields)
    return found


@laws
@given(st.lists(st.tuples(st.integers(1, 5), seeds), max_size=6), configs())
def test_packing_loses_nothing_and_mixes_nothing(stories: list[tuple[int, int]], config: DirectorConfig) -> None:
    items = [inputs(config)(tale(num_steps, seed=seed)) for num_steps, seed in stories]
    documents = [document for item in items for document in item.documents]
    batch = Packer(config.sequence.max_length, Z)(items)
    assert batch.ids_RL.shape[1] % 16 == 0
    assert batch.ids_RL.shape[1] < config.sequence.max_length + 16
    found = of_batch(batch)
    assert len(found) == len(documents)
    remaining = list(documents)
    for fields in found:
        matches = [
            index
            for index, document in enumerate(remaining)
            if all(np.array_equal(getattr(document, name), value) for name, value in fields.items())
        ]
        assert matches, "a document that was not given, or not all of it"
        del remaining[matches[0]]
    num_images = sum(len(document.read) for document in documents)
    num_later = sum(int((document.before_read >= 0).sum()) for document in documents)
    num_text = sum(int((document.labels != IGNORE).sum()) for document in documents)
    counts = {"text": num_text} | dict.fromkeys(IMAGE_TERMS, num_images) | dict.fromkeys(LATER_TERMS, num_later)
    assert batch.counts == counts
    assert batch.num_tokens == sum(map(len, documents))
    assert batch.left_out == {
        name: sum(item.left_out[name] for item in items) for name in (items[0].left_out if items else ())
    }
    is_padding = batch.documents_RL < 0
    assert (batch.labels_RL[is_padding] == IGNORE).all()


def test_a_document_goes_into_the_first_row_with_room() -> None:
    lengths = {num: len(inputs(DirectorConfig())(tale(num)).documents[0]) for num in (1, 2, 4)}
    items = [inputs(DirectorConfig())(tale(num)) for num in (4, 2, 1)]
    batch = Packer(lengths[4] + lengths[1], Z)(items)
    assert [sorted(set(row.tolist()) - {-1}) for row in batch.documents_RL] == [[0, 1], [2]]
    assert (batch.documents_RL[0] >= 0).sum() == lengths[4] + lengths[1]
    one_less = Packer(lengths[4] + lengths[1] - 1, Z)(items)
    assert [sorted(set(row.tolist()) - {-1}) for row in one_less.documents_RL] == [[0], [1, 2]]


def test_a_batch_moves_whole() -> None:
    batch = Packer(200, Z)([inputs(DirectorConfig())(tale(2))])
    moved = batch.to(torch.device("meta"))
    tensors = [name for name in Batch.__dataclass_fields__ if isinstance(getattr(batch, name), torch.Tensor)]
    assert len(tensors) == 12
    assert all(getattr(moved, name).is_meta for name in tensors)
    assert moved.counts == batch.counts


# Real narratives


def test_a_real_shard_set_becomes_a_batch(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("a", num_clips=4), Story("b", num_clips=2)])
    add_features(out, "tiny", Z)
    split = load_split("train", out, features=("tiny",))
    make = pickle.loads(pickle.dumps(inputs(DirectorConfig())))  # as a DataLoader's worker has it
    assert isinstance(make, NarrativeInputs)
    items = [make(narrative) for narrative in split]
    batch = Packer(512, Z)(items)
    assert batch.counts["visual"] == sum(narrative.num_steps for narrative in split)
    for narrative, item in zip(split, items, strict=True):
        texts = [(name, text) for name, text in told(item.documents[0]) if name in ("<action>", "<caption>")]
        expected = [(("<action>", step.action), ("<caption>", step.caption)) for step in narrative.steps]
        assert texts == list(chain.from_iterable(expected))
        assert np.array_equal(item.documents[0].z, narrative.features["tiny"].astype(np.float32))
