"""The link ledger: what was once written is read again, whatever a kill did to the last line."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen.errors import OutputError
from pipelines.sources.ledger import MAX_DETAIL, Attempt, Ledger, Outcome, Place, one_line, without_credentials


def attempt(video_id: str = "a", outcome: Outcome = Outcome.OK, url: str = "https://x/a", detail: str = "") -> Attempt:
    return Attempt(
        video_id=video_id, place="yt-dlp", url=url, at="2026-11-29T22:50:01Z", outcome=outcome, detail=detail
    )


ATTEMPTS = st.lists(
    st.builds(
        attempt,
        video_id=st.sampled_from(["a", "b", "-c"]),
        outcome=st.sampled_from(list(Outcome)),
        url=st.sampled_from(["https://x/1", "s3://y/2"]),
        detail=st.text().map(one_line),
    ),
    min_size=1,
    max_size=8,
)


def newest(attempts: list[Attempt]) -> dict[tuple[str, str], Attempt]:
    return {(item.video_id, item.url): item for item in attempts}


def read(path: Path) -> dict[tuple[str, str], Attempt]:
    ledger = Ledger(path)
    return {(i, url): found for i in ("a", "b", "-c") for url, found in ledger.of(i).items()}


@settings(deadline=None, max_examples=50)  # each line waits for the disk
@given(ATTEMPTS, st.data())
def test_a_file_cut_anywhere_keeps_every_whole_line_and_takes_more(
    attempts: list[Attempt], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "links.jsonl"
        for item in attempts:
            Ledger(path).add(item)
        assert read(path) == newest(attempts)
        content = path.read_bytes()
        ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        num_whole = sum(end <= cut + 1 for end in ends)  # a line that lost its newline alone is whole
        assert read(path) == newest(attempts[:num_whole])
        more = attempt("b", Outcome.REGION, detail="later")
        Ledger(path).add(more)
        assert read(path) == newest([*attempts[:num_whole], more])


def test_one_line_an_attempt_also_from_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "links.jsonl"
    ledger = Ledger(path)
    threads = [
        threading.Thread(target=lambda i=i: [ledger.add(attempt(f"{i}-{n}")) for n in range(20)]) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["video_id"] for line in lines) == sorted(f"{i}-{n}" for i in range(4) for n in range(20))
    assert set(lines[0]) == {"video_id", "place", "url", "at", "outcome", "detail"}


def test_the_newest_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "links.jsonl")
    ledger.add(attempt("a", Outcome.NETWORK, "https://x/1"))
    ledger.add(attempt("a", Outcome.REMOVED, "https://x/2"))
    ledger.add(attempt("b", Outcome.OK))
    ledger.add(attempt("a", Outcome.BLOCKED, "https://x/1"))
    for found in (ledger, Ledger(tmp_path / "links.jsonl")):
        assert [item.outcome for item in found.of("a").values()] == [Outcome.REMOVED, Outcome.BLOCKED]
        assert found.counts() == {"blocked": 1, "ok": 1}
    assert ledger.of("c") == {}


def test_lines_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    ledger = Ledger(path)
    ledger.add(attempt("a"))
    with path.open("ab") as stream:
        stream.write(b'{"video_id": "b", "outcome": "moved"}\n[]\n\xff\xfe\n' + b"[" * 100_000 + b"\n")
    assert Ledger(path).counts() == {"ok": 1}


def test_a_ledger_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"links\.jsonl: cannot be written"):
        Ledger(tmp_path / "file" / "links.jsonl").add(attempt())


def test_what_is_final() -> None:
    final = {outcome.value for outcome in Outcome if outcome.is_final}
    assert final == {"ok", "removed", "private", "region", "corrupt"}
    assert set(Place.__args__) == {"mirror", "archive", "yt-dlp"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://www.youtube.com/watch?v=ID", "https://www.youtube.com/watch?v=ID"),
        ("https://me:pass@host:8/ID.mp4", "https://host:8/ID.mp4"),
        ("https://me:p@ss@host/ID.mp4", "https://host/ID.mp4"),
        ("https://host/get?file=ID.mp4&token=s3cret#t", "https://host/get?file=ID.mp4&token="),
        ("s3://bucket/a/ID.mp4", "s3://bucket/a/ID.mp4"),
    ],
)
def test_credentials_are_left_out(url: str, shown: str) -> None:
    assert without_credentials(url, "ID") == shown


@given(st.text(max_size=2000))
def test_one_line_is_one_short_line(text: str) -> None:
    line = one_line(text)
    assert len(line) <= MAX_DETAIL
    assert line.isprintable()
    assert len(line.splitlines()) <= 1


def test_one_line_names_no_password() -> None:
    said = "ProxyError: http://me:s3cr@t@proxy:3128/ refused\n\x1b[31mred"
    assert one_line(said) == "ProxyError: http://proxy:3128/ refused [31mred"
