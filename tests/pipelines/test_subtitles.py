"""Subtitle files of all kinds become words in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookgen.perception.speech import TimedWord
from pipelines.subtitles import MAX_BYTES, SubtitlesError, read_subtitles


def read(tmp_path: Path, text: str | bytes, *, name: str = "a.vtt", duration_s: float = 1000.0) -> list[TimedWord]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_subtitles(path, duration_s=duration_s)


def said(words: list[TimedWord]) -> str:
    return " ".join(word.text for word in words)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("captions_with_bom.vtt", "1234"),
        ("invalid.vtt", "1234567"),  # the header is missing; its cues are good
        ("invalid_timeframe.vtt", "134567"),
        ("metadata_headers_multiline.vtt", "12"),
        ("missing_caption_text.vtt", "1345"),
        ("missing_timeframe.vtt", "134567"),
        ("missing_timeframe.srt", "1345"),
        ("sample.srt", "12345"),
    ],
)
def test_good_cues_of_real_files_are_read(data: Path, name: str, numbers: str) -> None:
    words = read_subtitles(data / "subtitles" / name, duration_s=100)
    assert said(words).startswith(" ".join(f"Caption text #{number}" for number in numbers))
    assert {word.text for word in words} <= {"Caption", "text", *(f"#{number}" for number in range(1, 9))}


def test_sbv(data: Path) -> None:
    words = read_subtitles(data / "subtitles/sample.sbv", duration_s=100)
    assert said(words) == (
        "Caption text #1 Caption text #2 Caption text #3 (line 1) Caption text #3 (line 2) Caption text #4"
    )  # the fifth cue ends before it starts
    assert words[0].start_s == pytest.approx(0.378) and words[-1].end_s == pytest.approx(16.234)


def test_comments_are_no_speech(data: Path) -> None:
    words = read_subtitles(data / "subtitles/comments.vtt", duration_s=1000)
    assert said(words).startswith("Ta en kopp varmt te. Det är inte varmt. Har en kopp te.")
    assert "NOTE" not in said(words) and "Kyle" not in said(words) and "translate" not in said(words)


def test_times_inside_a_cue_are_used(data: Path) -> None:
    words = {word.text: word for word in read_subtitles(data / "subtitles/cue_tags.vtt", duration_s=100)}
    starts = {"When": 16.5, "hits": 17.5, "Like": 18.5, "big-a": 19.0, "pizza": 19.5, "pie": 20.0, "amore": 21.0}
    assert {text: words[text].start_s for text in starts} == pytest.approx(starts)
    assert words["amore"].end_s == pytest.approx(21.5)


def test_rolling_captions_say_each_word_once(data: Path) -> None:
    words = read_subtitles(data / "subtitles/youtube_dl.vtt", duration_s=1000)
    assert said(words) == "yeah what this will happen is I'm telling"
    starts = {word.text: word.start_s for word in words}
    assert starts["what"] == pytest.approx(286.47) and starts["will"] == pytest.approx(304.199)


ROLLING = """WEBVTT

00:00:00.000 --> 00:00:02.000 align:start position:0%
~
first<00:00:00.500><c> chop</c><00:00:01.000><c> the</c>

00:00:02.000 --> 00:00:02.010 align:start position:0%
first chop the
~

00:00:02.010 --> 00:00:04.000 align:start position:0%
first chop the
onion<00:00:03.000><c> and</c>

00:00:04.000 --> 00:00:04.010 align:start position:0%
onion and
~

00:00:04.010 --> 00:00:06.000 align:start position:0%
onion and
stir
""".replace("~", " ")  # the line with one blank that YouTube writes


def test_a_rolling_text_of_three_lines(tmp_path: Path) -> None:
    words = read(tmp_path, ROLLING)
    assert said(words) == "first chop the onion and stir"
    assert [word.start_s for word in words] == pytest.approx([0, 0.5, 1, 2.01, 3, 4.01])


def test_rolling_srt_without_times_inside(tmp_path: Path) -> None:
    text = (
        "1\n00:00:00,000 --> 00:00:04,000\nfirst chop the onion\n\n"
        "2\n00:00:02,000 --> 00:00:06,000\nfirst chop the onion\nthen fry it\n\n"
        "3\n00:00:04,000 --> 00:00:08,000\nthen fry it\nand stir\n\n"
    )
    words = read(tmp_path, text, name="a.srt")
    assert said(words) == "first chop the onion then fry it and stir"
    assert next(word for word in words if word.text == "then").start_s == pytest.approx(2)


def test_what_is_said_twice_stays_twice(tmp_path: Path) -> None:
    text = "WEBVTT\n\n00:01.000 --> 00:02.000\nStir, stir well\n\n00:05.000 --> 00:06.000\nStir, stir well\n"
    assert said(read(tmp_path, text)) == "Stir, stir well Stir, stir well"
    text = "WEBVTT\n\n00:01.000 --> 00:02.000\nit is very\n\n00:02.000 --> 00:03.000\nvery good indeed\n"
    assert said(read(tmp_path, text)) == "it is very very good indeed"


def test_words_share_their_cue_by_characters(tmp_path: Path) -> None:
    words = read(tmp_path, "WEBVTT\n\n00:10.000 --> 00:20.000\n<i>add</i> a spoon &amp; {\\an8}stir\n")
    assert said(words) == "add a spoon & stir"
    assert [word.start_s for word in words] == pytest.approx(
        [10, 10 + 30 / 14, 10 + 40 / 14, 10 + 90 / 14, 10 + 100 / 14]
    )
    assert words[-1].end_s == pytest.approx(20)
    assert {word.probability for word in words} == {1.0}


def test_sounds_and_marks_are_no_words(tmp_path: Path) -> None:
    text = "WEBVTT\n\n00:01.000 --> 00:02.000\n[Music] ♪ - >> Cut the <3 [ __ ] onions…\n"
    assert said(read(tmp_path, text)) == "Cut the <3 onions…"
    with pytest.raises(SubtitlesError, match="no cue with words"):
        read(tmp_path, "WEBVTT\n\n00:01.000 --> 00:02.000\n[Music]\n")


def test_overlapping_ends_are_cut(tmp_path: Path) -> None:
    text = "1\n00:00:00,000 --> 00:00:09,000\none two\n\n2\n00:00:04,000 --> 00:00:08,000\nthree\n"
    words = read(tmp_path, text, name="a.srt")
    assert [word.end_s for word in words] == pytest.approx([2, 4, 8])


def test_two_speakers_at_once_speak_one_after_the_other(tmp_path: Path) -> None:
    text = "WEBVTT\n\n00:00.000 --> 00:04.000\nleft one\n\n00:00.000 --> 00:04.000\nrite two\n"
    words = read(tmp_path, text)
    assert said(words) == "left one rite two"
    assert min(word.end_s - word.start_s for word in words) > 0.5


def test_cues_need_no_order_and_no_empty_line(tmp_path: Path) -> None:
    text = "2\n0:00:05,5 --> 0:00:06,000 X1:63 Y1:43\nthen stir\n1\n00:00:01.000 --> 00:00:02.000\nfirst cut\n"
    words = read(tmp_path, text, name="a.srt")
    assert said(words) == "first cut then stir"
    assert words[2].start_s == pytest.approx(5.5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, line_end: str) -> None:
    text = "WEBVTT\n\n00:01.000 --> 00:02.000\nréduire la crème\n\n00:03.000 --> 00:04.000\nbrûlée\n"
    words = read(tmp_path, text.replace("\n", line_end).encode(encoding))
    assert said(words) == "réduire la crème brûlée"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"WEBVTT\n",
        b"<html><body>404</body></html>",
        b"\x00" * 100,
        bytes(range(256)) * 10,
        b"WEBVTT\n\n1 --> 2\nx",
    ],
)
def test_what_is_no_subtitle_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SubtitlesError, match="no cue with words"):
        read(tmp_path, content)


def test_cues_after_the_end_of_the_video_are_dropped(tmp_path: Path) -> None:
    text = "WEBVTT\n\n00:01.000 --> 00:20.000\nfirst cut\n\n00:30.000 --> 00:31.000\nlate\n"
    words = read(tmp_path, text, duration_s=5.0)
    assert said(words) == "first cut" and words[-1].end_s <= 5
    with pytest.raises(SubtitlesError, match=r"no cue with words in the video's 0\.500 s"):
        read(tmp_path, text, duration_s=0.5)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SubtitlesError, match="No such file"):
        read_subtitles(tmp_path / "none.vtt", duration_s=1)
    with pytest.raises(SubtitlesError, match="Is a directory"):
        read_subtitles(tmp_path, duration_s=1)
    with pytest.raises(SubtitlesError, match=f"at most {MAX_BYTES}"):
        read(tmp_path, b"x" * (MAX_BYTES + 1))


@pytest.mark.timeout(20)  # what takes quadratic time would take hours
@pytest.mark.parametrize("unit", ["[", "<a", "{\\", "<00:01.000>", "a ", "&", "\n", "[x]", "00:01.000"])
def test_no_text_takes_quadratic_time(tmp_path: Path, unit: str) -> None:
    text = "WEBVTT\n\n00:01.000 --> 00:02.000\nword " + unit * (1_000_000 // len(unit))
    assert read(tmp_path, text)[0].text.startswith("word")


lines = st.sampled_from(
    [
        *["", " ", "1", "WEBVTT", "NOTE x", "-->", "stir the pot", "stir"],
        *["00:01.000 --> 00:03.000", "00:00:02,500 --> 00:00:09,999", "0:00:01.1,0:00:02.2", "00:05.000 --> 00:04.000"],
        *["<00:02.000>fry", "a<00:09.000><c> b</c><00:01.000>c"],
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, max_size=25))
def test_words_are_in_order_whatever_the_lines(tmp_path: Path, found: list[str]) -> None:
    try:
        words = read(tmp_path, "\n".join(found), duration_s=7.0)
    except SubtitlesError:
        return
    previous_end = 0.0
    for word in words:
        assert word.text.strip() and "-->" not in word.text
        assert previous_end - 1e-9 <= word.start_s < word.end_s <= 7 + 1e-9
        previous_end = word.end_s
