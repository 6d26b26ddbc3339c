"""The `howto100m` source: HowTo100M_v1.csv, a sample of its videos, and raw_caption.json for what is said in them.

Captions are gigabytes: `write_captions` streams them once and keeps those of the sample, one small .vtt a video, which
`list_videos` then names as the videos' subtitles. Source: Miech et al. 2019 (HowTo100M); VideoAuteur, section 3, which
takes 30,972 of the cooking videos with these captions.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import heapq
import html
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cookgen.errors import InputError, UnknownNameError
from cookgen.files import digest, explained, file_sha256, narrative_name, write_atomic
from cookgen.records import Reject, SourceVideo
from pipelines.sources.folder import MAX_TEXT, files_by_stem, source_video
from pipelines.sources.places import Missing
from pipelines.subtitles import MAX_BYTES

NAME = "howto100m"
COLUMNS = ("video_id", "category_1", "category_2", "rank", "task_id")
TASK_NAMES = "task_ids.csv"  # HowTo100M's own name for it; taken where it lies beside the CSV
CAPTIONS = "captions"  # folder of the written captions
MAX_KNOWN = 200  # categories that an error can list; HowTo100M has fewer
MAX_NAMED = 10  # ids that a warning lists
MAX_VIDEO_CHARACTERS = 8 * 2**20  # of captions; a day of speech has fewer
MAX_TIME_S = 100 * 3600.0  # a time after it is none
GUESSED_LINE_S = 4.0  # how long a line without a usable end stands at most; YouTube's stand about as long
_BLOCK_BYTES = 2**20
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SOUND = re.compile(r"\[[^\[\]]*\]")  # [Music]
_LETTER = re.compile(r"[^\W_]")
_BLANK = r"[ \t\r\n]*"
_OPENING = re.compile(rf"{_BLANK}\{{")
_KEY = re.compile(
    rf'{_BLANK}("(?:[^"\\]++|\\.)*+"){_BLANK}:{_BLANK}', re.DOTALL
)  # possessive: no memory for each character
_FOLLOWING = re.compile(rf"{_BLANK}([,}}])")
_DECODER = json.JSONDecoder(strict=False, parse_int=float)  # float: an integer of 5000 digits is infinite, not an error
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class HowTo100MConfig:
    """Which of the CSV's videos are taken; None and an empty tuple take all. The paper took 30,972 cooking videos."""

    category: str | None = "Food and Entertaining"  # category_1
    subcategory: str | None = None  # category_2, for example Recipes
    max_rank: int | None = None  # in the search for the task, best first
    task_ids: tuple[int, ...] = ()
    num_videos: int | None = None  # a larger sample contains the smaller one

    def __post_init__(self) -> None:
        if self.max_rank is not None and self.max_rank < 0:
            raise ValueError(f"max_rank is {self.max_rank}; it must be at least 0")
        if self.num_videos is not None and self.num_videos < 1:
            raise ValueError(f"num_videos is {self.num_videos}; it must be at least 1, or none for all")


@dataclass(frozen=True, slots=True)
class Entry:
    """A video of the sample, with its best row's rank and task."""

    video_id: str
    rank: int
    task_id: int

    @property
    def narrative(self) -> str:
        """Its narrative's name, which is safe whatever the id."""
        return narrative_name(NAME, self.video_id)

    @property
    def url(self) -> str:
        """Where the video is to be had."""
        return f"https://www.youtube.com/watch?v={quote(self.video_id, safe='')}"


def sample(annotations: Path, config: HowTo100MConfig) -> list[Entry]:
    """The videos of HowTo100M_v1.csv that the configuration asks for, by id; memory grows with the sample alone.

    The sample is those with the smallest sha256 of "cookgen/howto100m:" + id: the file's order changes nothing. A
    video that stands under several of the tasks counts once, with its best rank (then the smallest task id).
    Raises InputError naming the line and the column where the file is not in HowTo100M's form or nothing passes, and
    UnknownNameError for a category that is not in it.
    """
    best: dict[str, Entry] = {}
    last: list[tuple[int, str]] = []  # a heap: on top what has to go when a better one comes
    known: dict[str, set[str]] = {"category": set(), "subcategory": set()}
    line = 1
    for line, (video_id, category, subcategory, rank_text, task_text) in _rows(annotations):
        _remember(known["category"], category)
        if config.category not in (None, category):
            continue
        _remember(known["subcategory"], subcategory)
        if config.subcategory not in (None, subcategory):
            continue
        rank = _integer(annotations, line, "rank", rank_text)
        task_id = _integer(annotations, line, "task_id", task_text)
        if config.max_rank is not None and rank > config.max_rank:
            continue
        if config.task_ids and task_id not in config.task_ids:
            continue
        held = best.get(video_id)
        if held is None and config.num_videos is not None:
            heapq.heappush(last, (-_place(video_id), video_id))
        if held is None or (rank, task_id) < (held.rank, held.task_id):
            best[video_id] = Entry(video_id, rank, task_id)
        if config.num_videos is not None and len(last) > config.num_videos:
            del best[heapq.heappop(last)[1]]
    for name, wanted in (("category", config.category), ("subcategory", config.subcategory)):
        if not best and known[name] and wanted not in (None, *known[name]):
            raise UnknownNameError(f"value of {NAME}.{name}", str(wanted), known[name])
    if not best:
        raise InputError(
            f"{annotations}: none of its {line} lines passes category {config.category!r}, subcategory "
            f"{config.subcategory!r}, max_rank {config.max_rank}, task_ids {list(config.task_ids)}; "
            f"change --set {NAME}.…"
        )
    return [best[video_id] for video_id in sorted(best)]


def _place(video_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"cookgen/{NAME}:{video_id}".encode()).digest())


def _remember(known: set[str], name: str) -> None:
    if len(known) < MAX_KNOWN:
        known.add(name)


def _integer(annotations: Path, line: int, column: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"{annotations}: line {line}, column {column}: {text[:40]!r} is no whole number; mend the line"
        ) from error


def _rows(annotations: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, the values of COLUMNS) of each row."""
    remedy = "ANNOTATIONS must name HowTo100M_v1.csv or a file of the same form"
    try:
        with annotations.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise InputError(f"{annotations}: has no column {', '.join(missing)} in its first line; {remedy}")
            places = [header.index(name) for name in COLUMNS]
            for row in reader:
                if len(row) == len(header):
                    yield reader.line_num, [row[place].strip() for place in places]
                elif row:
                    raise InputError(
                        f"{annotations}: line {reader.line_num} has {len(row)} fields, the first line {len(header)}; "
                        "where the file was cut off, download it again"
                    )
    except OSError as error:
        raise InputError(f"{annotations}: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{annotations}: not UTF-8 ({error.reason}); {remedy}, in UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{annotations}: line {reader.line_num}: not CSV ({error}); {remedy}") from error


def task_names(annotations: Path) -> dict[int, str]:
    """What the tasks are called, from task_ids.csv beside the annotations; empty where there is none that can be read.

    Its columns are the task's id and name, parted by tabs (as published) or commas, with or without a first line.
    """
    path = annotations.with_name(TASK_NAMES)
    names = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = "\t" if "\t" in stream.readline() else ","
            stream.seek(0)
            for row in csv.reader(stream, delimiter=delimiter):
                if len(row) >= 2 and row[0].strip().isdecimal() and len(row[0]) < 20:
                    names[int(row[0])] = " ".join(_CONTROL.sub(" ", row[1]).split())[:MAX_TEXT]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        _LOG.warning("%s: cannot be read (%s); mend or remove it: until then videos have no topic", path, error)
        return {}
    return names


def list_videos(
    folders: Sequence[Path], annotations: Path, config: HowTo100MConfig, *, captions_folder: Path | None = None
) -> Iterator[SourceVideo | Reject | Missing]:
    """Every video of the sample, in the order of its id; one that is in none of the folders is `Missing`.

    The first folder that holds a video counts, and in it the first in path order. captions_folder: that of
    `write_captions`; what is written there comes before captions beside the video, and `subtitles` is then relative to
    it. Raises what `sample` raises, and InputError where a folder cannot be listed.
    """
    entries, topics = sample(annotations, config), task_names(annotations)
    files = files_by_stem(folders)
    for entry in entries:
        if entry.video_id not in files:
            yield Missing(entry.narrative, entry.video_id, entry.url)
            continue
        folder, path = files[entry.video_id]
        topic = topics.get(entry.task_id) or None
        row = source_video(folder, path, source=NAME, video_id=entry.video_id, url=entry.url, topic=topic)
        captions = f"{CAPTIONS}/{_file_name(entry.narrative)}"
        if isinstance(row, SourceVideo) and captions_folder is not None and (captions_folder / captions).is_file():
            sha256 = file_sha256(captions_folder / captions)
            row = row.model_copy(update={"subtitles": captions, "subtitles_sha256": sha256})
        yield row


def write_captions(captions: Path, entries: Sequence[Entry], captions_folder: Path) -> None:
    """Writes the entries' captions below `captions_folder`, one WebVTT file a video, and removes those of others.

    captions: raw_caption.json, {id: {"text": [...], "start": [...], "end": [...]}}, of any size: memory stays constant.
    Lines stay as they are, overlapping and rolling: `read_subtitles` parts them. What cannot be is left out, and a
    video of which nothing is left has no file; one warning counts each. Does nothing where it has been done before
    with the same file (size and time) for the same videos.
    Raises InputError where the file is not of this form, with the byte and the number of videos read until there;
    OutputError where the folder cannot be written.
    """
    try:
        status = captions.stat()
    except OSError as error:
        raise InputError(f"{captions}: {error.strerror}; CAPTIONS must name HowTo100M's raw_caption.json") from error
    # Of two ids that come to one name, the first has it: so does the row that the run keeps.
    owners = {entry.narrative: entry.video_id for entry in reversed(entries)}
    names = {video_id: _file_name(narrative) for narrative, video_id in owners.items()}
    folder = captions_folder / CAPTIONS
    stamp = folder / "stamp.json"
    done = json.dumps(digest({"version": 1, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "names": names}))
    if stamp.is_file() and stamp.read_text() == done:
        return
    faulty: dict[str, int] = {}  # lines
    written: dict[str, str] = {}
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
    for video_id, value in _captions(captions):
        if video_id in names:
            text, num_faulty = _vtt(value)
            if num_faulty:
                faulty[video_id] = num_faulty
            if text is not None:
                written[video_id] = names[video_id]
                with explained(folder):
                    write_atomic(folder / names[video_id], text)
    with explained(folder):
        for name in {path.name for path in folder.iterdir()} - set(written.values()):  # also what a killed run left
            (folder / name).unlink()
        write_atomic(stamp, done)
    if faulty:
        _LOG.warning(
            "%s: %d lines of %d videos were mended or left out, their text or times are none: %s",
            captions,
            sum(faulty.values()),
            len(faulty),
            _named(f"{video_id} ({count})" for video_id, count in sorted(faulty.items())),
        )
    if silent := sorted(names.keys() - written.keys()):
        _LOG.warning(
            "%s: no captions of %d of %d videos, they are listened to: %s",
            captions,
            len(silent),
            len(entries),
            _named(silent),
        )


def _file_name(narrative: str) -> str:
    return f"{narrative}.en.vtt"


def _named(names: Iterable[str]) -> str:
    shown = [name.encode("ascii", "backslashreplace").decode()[:80] for name in names]
    return ", ".join(shown[:MAX_NAMED]) + (f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else "")


def _vtt(value: Any) -> tuple[str | None, int]:
    """One video's captions as WebVTT, None where no line says anything; and how many lines were mended or left out."""
    found = [value.get(name) if isinstance(value, dict) else None for name in ("text", "start", "end")]
    columns = [column if isinstance(column, list) else [] for column in found]
    lines: list[tuple[int, int, str]] = []
    num_faulty = 0
    for text, start, end in zip_longest(*columns):
        times = _milliseconds(start), _milliseconds(end)
        span = _span(*times)
        rows = [" ".join(_CONTROL.sub(" ", row).split()) for row in text.split("\n")] if isinstance(text, str) else None
        num_faulty += rows is None or span != times
        if rows and span and _LETTER.search(_SOUND.sub(" ", " ".join(rows))):
            lines.append((*span, "\n".join(html.escape(row, quote=False) for row in rows if row)))
    lines.sort(key=lambda line: line[0])
    cues = [f"{_clock(start_ms)} --> {_clock(end_ms)}\n{text}\n" for start_ms, end_ms, text in lines]
    vtt = "\n".join(["WEBVTT\n", *cues]).encode("utf-8", "replace")  # half a surrogate is JSON, but no text
    return (vtt.decode() if lines and len(vtt) <= MAX_BYTES else None), num_faulty


def _span(start_ms: int | None, end_ms: int | None) -> tuple[int, int] | None:
    """The nearest time that can be: not before 0, GUESSED_LINE_S long without an end; None without a start."""
    if start_ms is None or (start_ms < 0 and (end_ms is None or end_ms <= 0)):
        return None
    start_ms = max(0, start_ms)
    if end_ms is None or end_ms <= start_ms:
        end_ms = start_ms + round(GUESSED_LINE_S * 1000)
    return start_ms, end_ms


def _milliseconds(seconds: Any) -> int | None:
    """A time in whole milliseconds, as YouTube's are; None where it is none."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    return round(seconds * 1000) if is_number and abs(seconds) <= MAX_TIME_S else None  # NaN is not <= either


def _clock(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def _captions(path: Path) -> Iterator[tuple[str, Any]]:
    """(id, value) of each video of a JSON object of any size, one video at a time.

    ijson, which is made for this, refuses NaN, and the file has it for some texts. So the standard decoder reads video
    after video from a window of the file, which grows where a video goes on beyond it.
    """
    remedy = "CAPTIONS must name HowTo100M's raw_caption.json, unpacked and whole; download it again"
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    num_videos = 0

    def refusal(fault: str, at: int) -> InputError:
        byte = stream.tell() - len(window[at:].encode())
        size = path.stat().st_size
        return InputError(
            f"{path}: no JSON from byte {byte} of {size} on ({fault}), after {num_videos} videos; {remedy}"
        )

    try:
        with path.open("rb") as stream:
            window = decode(stream.read(_BLOCK_BYTES))
            opening = _OPENING.match(window)
            if opening is None:
                raise InputError(f"{path}: does not begin with an object of videos; {remedy}")
            at = opening.end()
            while True:
                try:
                    video_id, value, following = _video(window, at)
                except json.JSONDecodeError as error:
                    if len(window) - at > MAX_VIDEO_CHARACTERS or not (block := stream.read(_BLOCK_BYTES)):
                        raise refusal(error.msg, error.pos) from error
                    window, at = window[at:] + decode(block), 0
                    continue
                yield video_id, value
                num_videos += 1
                at = following.end()
                if following[1] == "}":
                    break
            window = (window[at:] + decode(stream.read(_BLOCK_BYTES))).lstrip()
            if window:
                raise refusal("Extra data", 0)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}), after {num_videos} videos; {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{path}: lists in lists without end, after {num_videos} videos; {remedy}") from error


def _video(window: str, at: int) -> tuple[str, Any, re.Match[str]]:
    """(id, value, the mark after it) of the video that begins there; JSONDecodeError where it does not end there."""
    key = _KEY.match(window, at)
    if key is None:
        raise json.JSONDecodeError("Expecting a video's id", window, at)
    video_id, _ = _DECODER.raw_decode(window, key.start(1))
    value, end = _DECODER.raw_decode(window, key.end())
    following = _FOLLOWING.match(window, end)
    if following is None:
        raise json.JSONDecodeError("Expecting ',' or '}'", window, end)
    return video_id, value, following
