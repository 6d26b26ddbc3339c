"""OUT/report.html: one page, from what came in to what came out, with a timeline a video.

The page asks nothing of anyone: styles, script, drawings and pictures are inside it, and its content security policy
forbids the browser anything else. Everything on it that came from outside is escaped by the template engine. The same
rows give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup
from PIL import Image

from cookgen.records import Action, Caption, Check, Clip, Match, Narrative, Record, Reject, Video, Word
from pipelines.report import timeline
from pipelines.stage import VideoState
from pipelines.stages.actions import origins

R = TypeVar("R", bound=Record)
_FOLDER = Path(__file__).parent
_MAX_DETAILED = 100  # videos with a timeline of their own
_MAX_DETAIL_BYTES = 15_000_000  # and no more of them than this
_MAX_LISTED = 5_000  # rows in the list of all videos
_MAX_CARDS = 60  # keyframes a video
_MAX_TEXT = 600  # characters of a text from outside
_MAX_SPEECH = 20_000  # characters of a transcript
_THUMBNAIL_PX = 160
_KINDS = {  # how actions came to be
    "rewritten": "written by the language model in other words than those spoken",
    "verbatim": "words as they were spoken",
    "manual": "marked by people",
    "rejected": "answers of the language model that did not hold, and talk without an action",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STAND_IN = "tags"  # the captioner that is a classifier, not a vision-language model


def report_page(
    states: Sequence[VideoState],
    source_rejects: Sequence[Reject],
    *,
    narratives: Sequence[Narrative],
    rejects: Sequence[Reject],
    run: Mapping[str, Any],
    media: Callable[[str], Path],
) -> str:
    """The whole page as HTML that can be written as UTF-8.

    states: every video of the run, in any order. source_rejects: what the source itself refused, which has no state.
    narratives, rejects: all rows of those two tables. run: `name`, `source`, `created_by`, `config` (its digest).
    media: where the keyframe with this sha256 lies; one that cannot be read is shown as missing.
    """
    splits = {row.narrative: row.split for row in narratives}
    stops = {row.narrative: row for row in rejects if row.is_video_level and row.narrative is not None}
    models: dict[str, set[str]] = {}
    captioners: set[str] = set()
    kinds: Counter[str] = Counter()

    def view_of(state: VideoState) -> _VideoView:
        return _VideoView(state, splits.get(state.source.narrative), stops.get(state.source.narrative))

    briefs = []
    for position, state in enumerate(states):  # one at a time: a set can hold very many
        view = view_of(state)
        briefs.append(view.brief(position))
        captioners |= {caption.origin for caption in view.captions.values()}
        kinds += origins(view.actions.values(), ())
        for name, result in state.whole.items():
            if result.lineage.model:
                models.setdefault(name, set()).add(result.lineage.model)
    kinds += origins((), rejects)
    briefs.sort(key=lambda brief: (brief.split is None, not brief.clips, brief.name))  # the best to look at first
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    environment = _environment()
    details: list[Markup] = []
    room = _MAX_DETAIL_BYTES
    for brief in briefs[:_MAX_DETAILED]:
        view = view_of(states[brief.position])
        detail = Markup(environment.get_template("video.html").render(video=view, cards=view.cards(media)))
        room -= len(detail.encode(errors="replace"))
        if room < 0:
            break
        details.append(detail)
    found = [*briefs, *(_Refused(row) for row in sorted(source_rejects, key=lambda row: (row.path, row.reason)))]
    return render(
        "page.html",
        style=style,
        script=script,
        run=run,
        num_found=len(found),
        narratives=narratives,
        num_steps=sum(row.num_steps for row in narratives),
        splits=sorted(Counter(splits.values()).items()),
        funnels=_funnels(briefs, source_rejects, narratives, rejects),
        origins=[(kind, text, kinds[kind]) for kind, text in _KINDS.items() if kinds[kind]],
        reasons=_reasons(rejects),
        models=[(name, sorted(found)) for name, found in models.items()],
        captioners=sorted(captioners),
        is_stand_in=any(captioner.startswith(_STAND_IN) for captioner in captioners),
        details=details,
        listed=found[:_MAX_LISTED],
        num_unlisted=len(found[_MAX_LISTED:]),
    )


def render(template: str, *, style: str, script: str = "", **values: Any) -> str:
    """A whole page from a template, with this style and script in it, as HTML that can be written as UTF-8."""
    html = (
        _environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), policy=_policy(style, script), **values)
    )
    return html.encode(errors="replace").decode()  # a lone surrogate in a file's name has no UTF-8


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = timeline.clock
    environment.filters["short"] = _short
    environment.filters["words"] = lambda reason: str(reason).replace("_", " ")
    environment.globals["lanes"] = timeline
    return environment


def _shown(value: Any) -> Any:
    """Control characters in what comes from outside are no HTML: they are written out."""
    is_ours = isinstance(value, Markup) or not isinstance(value, str)
    return value if is_ours else _CONTROL.sub(lambda match: ascii(match[0])[1:-1], value)


def _policy(style: str, script: str) -> str:
    """A content security policy that allows this style, this script and embedded pictures, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _short(text: str | None, length: int = _MAX_TEXT) -> str:
    text = text or ""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@dataclass(frozen=True)
class _Card:
    """A clip with its keyframe, and what it says where it was matched. `number` is 0 for a clip without an action."""

    number: int
    clip: Clip
    picture: tuple[str, int, int] | None  # base64 of a JPEG, width, height
    action: Action | None
    caption: Caption | None
    match: Match | None
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Refused:
    """A file that the source itself refused: it has no results."""

    stop: Reject

    split = None
    steps: tuple[()] = ()

    @property
    def name(self) -> str:
        return self.stop.narrative or ""

    @property
    def path(self) -> str:
        return self.stop.path


@dataclass(frozen=True, slots=True)
class _Brief:
    """What the numbers of the page need of a video: which clips and actions it has, and which of them came how far."""

    position: int  # in the sequence of states
    name: str
    path: str
    split: str | None
    stop: Reject | None
    is_usable: bool
    is_annotated: bool
    is_heard: bool
    clips: tuple[int, ...]
    captioned: frozenset[int]
    steps: tuple[tuple[int, int], ...]  # (clip, action)
    actions: tuple[int, ...]


@dataclass(frozen=True)
class _VideoView:
    """One video and its rows, by their index. `split` is None for a video that is no narrative."""

    state: VideoState
    split: str | None
    stop: Reject | None  # its video-level reject

    def _rows(self, record: type[R]) -> list[R]:
        return [row for result in self.state.whole.values() for row in result.rows if isinstance(row, record)]

    @property
    def name(self) -> str:
        return self.state.source.narrative

    @property
    def path(self) -> str:
        return self.state.source.path

    @property
    def title(self) -> str:
        return _short(self.state.source.title, 200) or self.state.source.video_id

    @cached_property
    def video(self) -> Video | None:
        return next(iter(self._rows(Video)), None)

    @cached_property
    def words(self) -> list[Word]:
        return sorted(self._rows(Word), key=lambda row: row.word_id)

    @cached_property
    def clips(self) -> dict[int, Clip]:
        rows = sorted(self._rows(Clip), key=lambda row: (row.start_s, row.end_s, row.clip_index))
        return {row.clip_index: row for row in rows}

    @cached_property
    def actions(self) -> dict[int, Action]:
        rows = sorted(self._rows(Action), key=lambda row: (row.start_s, row.end_s, row.action_index))
        return {row.action_index: row for row in rows}

    @cached_property
    def captions(self) -> dict[int, Caption]:
        return {row.clip_index: row for row in self._rows(Caption)}

    @cached_property
    def steps(self) -> list[Match]:
        """The chosen matches, in the order of their clips."""
        order = list(self.clips)
        chosen = [row for row in self._rows(Match) if row.chosen and row.clip_index in self.clips]
        return sorted(chosen, key=lambda row: order.index(row.clip_index))

    @cached_property
    def checks(self) -> list[Check]:
        return sorted(self._rows(Check), key=lambda row: (row.check, row.clip_index or 0))

    @property
    def is_annotated(self) -> bool:
        """Whether people have marked its steps, so that nothing needs to be said in it."""
        return any(action.origin == "manual" for action in self.actions.values())

    def brief(self, position: int) -> _Brief:
        return _Brief(
            position=position,
            name=self.name,
            path=self.path,
            split=self.split,
            stop=self.stop,
            is_usable=self.video is not None,
            is_annotated=self.is_annotated,
            is_heard=bool(self._rows(Word)),
            clips=tuple(self.clips),
            captioned=frozenset(self.captions),
            steps=tuple((match.clip_index, match.action_index) for match in self.steps),
            actions=tuple(self.actions),
        )

    @property
    def transcript(self) -> list[timeline.Utterance]:
        """What is said, up to a length that can be read."""
        said, room = [], _MAX_SPEECH
        for part in timeline.utterances(self.words):
            room -= len(part.text)
            if room < 0:
                break
            said.append(part)
        return said

    @property
    def untold(self) -> list[Action]:
        """Actions without a clip."""
        matched = {match.action_index for match in self.steps}
        return [action for index, action in self.actions.items() if index not in matched]

    @cached_property
    def numbers(self) -> dict[int, int]:
        """clip_index -> step number, from 1."""
        return {match.clip_index: number for number, match in enumerate(self.steps, start=1)}

    @property
    def timeline(self) -> timeline.Timeline | None:
        if self.video is None:
            return None
        rows = list(self.actions.values()), list(self.clips.values())
        return timeline.draw(self.video.duration_s, self.words, *rows, self.steps, self.numbers)

    @property
    def scores(self) -> list[Check]:
        """Checks of the whole narrative."""
        return [row for row in self.checks if row.clip_index is None]

    def cards(self, media: Callable[[str], Path]) -> list[_Card]:
        """The steps, then the clips without an action, up to a number that can be looked at."""
        matches = {match.clip_index: match for match in self.steps}
        order = [*matches, *(index for index in self.clips if index not in matches)]
        cards = []
        for index in order[:_MAX_CARDS]:
            match = matches.get(index)
            cards.append(
                _Card(
                    number=self.numbers.get(index, 0),
                    clip=self.clips[index],
                    picture=_thumbnail(media(self.clips[index].keyframe_sha256)),
                    action=self.actions.get(match.action_index) if match else None,
                    caption=self.captions.get(index),
                    match=match,
                    checks=tuple(row for row in self.checks if row.clip_index == index),
                )
            )
        return cards


def _thumbnail(path: Path) -> tuple[str, int, int] | None:
    """A keyframe as a small JPEG: (base64, width, height); None where it cannot be read."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            image.draft("RGB", (2 * _THUMBNAIL_PX, 2 * _THUMBNAIL_PX))
            small = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=72, optimize=True)
    return base64.b64encode(content.getvalue()).decode(), small.width, small.height


@dataclass(frozen=True)
class _Level:
    """One level of a funnel: how many came this far, and why those before it did not."""

    label: str
    count: int
    of: int  # the first level's count
    lost: tuple[tuple[str, int], ...]  # (reason, count), the most frequent first


def _funnels(
    briefs: Sequence[_Brief],
    source_rejects: Sequence[Reject],
    narratives: Sequence[Narrative],
    rejects: Sequence[Reject],
) -> dict[str, list[_Level]]:
    speech = "with speech or marked steps" if any(brief.is_annotated for brief in briefs) else "with speech"
    tests: list[tuple[str, Callable[[_Brief], bool]]] = [
        ("usable", lambda brief: brief.is_usable),
        ("with clips", lambda brief: bool(brief.clips)),
        (speech, lambda brief: brief.is_heard or brief.is_annotated),
        ("with actions", lambda brief: bool(brief.actions)),
        ("with a match", lambda brief: bool(brief.steps)),
        ("narratives", lambda brief: brief.split is not None),
    ]
    found = len(briefs) + len(source_rejects)
    videos = [_Level("found", found, found, ())]
    left, gone = list(briefs), [str(row.reason) for row in source_rejects]
    for label, test in tests:
        gone += [str(brief.stop.reason) if brief.stop else "unfinished" for brief in left if not test(brief)]
        left = [brief for brief in left if test(brief)]
        videos.append(_Level(label, len(left), found, _counted(gone)))
        gone = []

    in_set = {row.narrative for row in narratives}
    cut = [(brief, index) for brief in briefs for index in brief.clips]
    why_clip = {(row.narrative, row.clip_index): str(row.reason) for row in rejects if row.clip_index is not None}
    clips = _levels(
        "cut",
        cut,
        [
            ("captioned", lambda brief, index: index in brief.captioned),
            ("matched", lambda brief, index: any(index == clip for clip, _ in brief.steps)),
            ("in narratives", lambda brief, _: brief.name in in_set),
        ],
        why_clip,
    )
    told = [(brief, index) for brief in briefs for index in brief.actions]
    why_action = {(row.narrative, row.action_index): str(row.reason) for row in rejects if row.action_index is not None}
    actions = _levels(
        "found",
        told,
        [
            ("matched", lambda brief, index: any(index == action for _, action in brief.steps)),
            ("in narratives", lambda brief, _: brief.name in in_set),
        ],
        why_action,
    )
    return {"Videos": videos, "Clips": clips, "Actions": actions}


def _levels(
    first: str,
    items: list[tuple[_Brief, int]],
    tests: Sequence[tuple[str, Callable[[_Brief, int], bool]]],
    why: Mapping[tuple[str | None, int], str],
) -> list[_Level]:
    """A funnel of things that videos have many of; what has no reason of its own went with its video."""
    levels = [_Level(first, len(items), len(items), ())]
    for label, test in tests:
        passed = [item for item in items if test(*item)]
        gone = [
            why.get((brief.name, index)) or (str(brief.stop.reason) if brief.stop else "unfinished")
            for brief, index in items
            if not test(brief, index)
        ]
        items = passed
        levels.append(_Level(label, len(items), levels[0].count, _counted(gone)))
    return levels


def _counted(reasons: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def _reasons(rejects: Sequence[Reject]) -> list[tuple[str, str, str, int]]:
    """(stage, level, reason, count), the most frequent first."""
    counts = Counter(
        (
            row.stage,
            "video" if row.is_video_level else "clip" if row.clip_index is not None else "action",
            str(row.reason),
        )
        for row in rejects
    )
    return [(*key, count) for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
