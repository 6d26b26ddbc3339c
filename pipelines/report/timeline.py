"""A video's timeline as coordinates: speech, actions, clips, and the matches between them. The template draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cookgen.records import Action, Clip, Match, Word

# All lengths are in the units of the SVG's viewBox.
WIDTH, LEFT, RIGHT = 1000.0, 64.0, 12.0
SPEECH_Y, ACTIONS_Y, CLIPS_Y, AXIS_Y, HEIGHT = 14.0, 58.0, 136.0, 180.0, 200.0
LANE = 26.0
_PAUSE_S = 0.7  # a longer silence parts two utterances
_TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
_MAX_TICKS = 12
_MIN_LABEL = 13.0  # a narrower bar has no room for its number


@dataclass(frozen=True)
class Bar:
    """A span in a lane. `label` is empty where there is no room; `tip` is what the pointer shows."""

    x: float
    width: float
    label: str
    tip: str
    is_matched: bool


@dataclass(frozen=True)
class Band:
    """A match: the polygon from an action's lower edge to its clip's upper edge."""

    points: str
    tip: str


@dataclass(frozen=True)
class Timeline:
    """Everything that is drawn. `words` is an SVG path with one tick a word."""

    speech: tuple[Bar, ...]
    words: str
    actions: tuple[Bar, ...]
    bands: tuple[Band, ...]
    clips: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Utterance:
    """Words without a long silence between them."""

    start_s: float
    end_s: float
    text: str


def clock(seconds: float) -> str:
    """Seconds as m:ss.s, or h:mm:ss from an hour on."""
    tenths = round(seconds * 10)
    if tenths >= 36000:
        whole = tenths // 10
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def utterances(words: Iterable[Word]) -> list[Utterance]:
    """The words joined where the silence between them is short."""
    groups: list[list[Word]] = []
    for word in words:
        if groups and word.start_s - groups[-1][-1].end_s <= _PAUSE_S:
            groups[-1].append(word)
        else:
            groups.append([word])
    return [
        Utterance(group[0].start_s, max(word.end_s for word in group), " ".join(word.text.strip() for word in group))
        for group in groups
    ]


def draw(
    duration_s: float,
    words: Sequence[Word],
    actions: Sequence[Action],
    clips: Sequence[Clip],
    chosen: Sequence[Match],
    numbers: dict[int, int],
) -> Timeline:
    """The timeline of one video. numbers: clip_index -> the number that the step has on the page."""
    ends_s = [*(word.end_s for word in words), *(action.end_s for action in actions), *(clip.end_s for clip in clips)]
    length_s = max(duration_s, 0.1, *ends_s)

    def x(seconds: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * seconds / length_s, 2)

    def bar(start_s: float, end_s: float, label: str, text: str, is_matched: bool) -> Bar:
        width = round(max(x(end_s) - x(start_s), 1.5), 2)
        tip = f"{clock(start_s)} to {clock(end_s)}: {text}"
        return Bar(x(start_s), width, label if width >= _MIN_LABEL else "", tip, is_matched)

    number_of_action = {match.action_index: str(numbers[match.clip_index]) for match in chosen}
    number_of_clip = {match.clip_index: str(numbers[match.clip_index]) for match in chosen}
    spans = {item.action_index: (x(item.start_s), x(item.end_s)) for item in actions}
    shown = {item.clip_index: (x(item.start_s), x(item.end_s)) for item in clips}
    return Timeline(
        speech=tuple(bar(said.start_s, said.end_s, "", said.text, True) for said in utterances(words)),
        words="".join(f"M{x(word.start_s):g} {SPEECH_Y + 5:g}v{LANE - 10:g}" for word in words),
        actions=tuple(
            bar(
                item.start_s,
                item.end_s,
                number_of_action.get(item.action_index, ""),
                item.text,
                item.action_index in number_of_action,
            )
            for item in actions
        ),
        bands=tuple(
            Band(_band(spans[match.action_index], shown[match.clip_index]), _match_text(match))
            for match in chosen
            if match.action_index in spans and match.clip_index in shown
        ),
        clips=tuple(
            bar(
                item.start_s,
                item.end_s,
                number_of_clip.get(item.clip_index, ""),
                f"clip {item.clip_index}, {item.num_frames} frames",
                item.clip_index in number_of_clip,
            )
            for item in clips
        ),
        ticks=_ticks(length_s, x),
    )


def _band(action: tuple[float, float], clip: tuple[float, float]) -> str:
    top, bottom = ACTIONS_Y + LANE, CLIPS_Y
    corners = ((action[0], top), (action[1], top), (clip[1], bottom), (clip[0], bottom))
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def _match_text(match: Match) -> str:
    pair = f"clip {match.clip_index} and action {match.action_index}"
    return f"{pair}: IoU {match.iou:.2f}, starts {match.start_diff_s:.1f} s apart"


def _ticks(length_s: float, x: Callable[[float], float]) -> tuple[tuple[float, str], ...]:
    step = next((step for step in _TICKS_S if length_s / step <= _MAX_TICKS), None) or int(length_s / _MAX_TICKS) + 1
    times = range(0, int(length_s) + 1, step)
    return tuple(
        (x(time), f"{time} s" if step < 60 and length_s < 180 else clock(time).removesuffix(".0")) for time in times
    )
