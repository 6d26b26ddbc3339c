"""actions: what the speech tells the viewer to do, as short imperative sentences with their spans.

The model cites the first and the last word that an action rests on, as `whisk:12`: word and word id, of which the
answer's JSON schema allows none but those that were asked about. So an answer that was meant for other words cannot
pass. Times are computed from the cited words, never asked for. There are two ways to ask:

Utterances (the default, for small models): a request holds one, which is words up to a sentence's end, a long pause, or
`max_words`; the answer is one action in the utterance's own words, or none. The ids stand in the schema alone: among
numbers a small model loses the sentence, while in the answer it has only to copy a word.

Windows (`window_words`, for models that can read them): a request holds overlapping stretches of the transcript with
all ids shown; the answer is a list, in which talk is named as well. An action's words, those that carry no content
aside, must be among the words that it cites, or beside them in the same utterance. Each spoken word ends in exactly
one row: that of an action or that of a reject (`settle`).

There is no way from the speech to an action but through an answer that holds: no fallback to what was said.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, chain, groupby
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

from cookgen import modelstore
from cookgen.config import machinery
from cookgen.errors import ModelServerError
from cookgen.files import digest
from cookgen.perception.llm import ChatModel, UnusableAnswerError
from cookgen.records import Action, Reason, Reject, Video, Word
from pipelines.stage import Needs, Places, Stage

T = TypeVar("T")
R = TypeVar("R")

PROMPT = Path(__file__).with_name("prompts") / "actions.json"
WINDOW_PROMPT = Path(__file__).with_name("prompts") / "action_windows.json"
NAME = "actions"
NO_ACTION = "none"
MAX_ACTION_WORDS = 20
MAX_UTTERANCE_CHARS = 400  # hostile captions: one "word" may be a page long
MAX_WORD_CHARS = 40  # a longer one is not shown in a window, and cannot be cited
MAX_ACTION_CHARS = 200
BYTES_A_WORD = 16  # of a window, on average: a longer one holds fewer words, so that it fits the model's context

# Words that carry no content of their own: none of them opens an action.
FUNCTION_WORDS = frozenset(
    """a an the this that these those some any all each both every it its it's they them their he him his she her i me
    my we us our you your and or but so then now next first finally also just really very only too here there again
    of to in on at for from with into onto over under up down out off about around through together until till when
    while if because once after before as by than not no don't be am is are was were been being i'm i'll i've you're
    you'll we're we'll we've they're that's there's he's she's do does did have has had can could will would should may
    might must going gonna want wanna need needs let's go ahead what which who how why where okay ok alright right well
    please yeah yes hi hey hello""".split()
)
# Of these the model may put any into an action, spoken or not.
JOINING_WORDS = ("a", "and", "the")
HANGING_WORDS = frozenset("a an and the of or to until with for from into".split())  # no sentence ends with one
NUMBER_WORDS = frozenset(
    """one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty hundred
    half quarter dozen couple few little bit much many lot lots more most""".split()
)


@dataclass(frozen=True)
class ActionsConfig:
    """How actions are taken from speech."""

    model: str = "smollm2-135m-instruct"  # as modelstore.resolve takes it, or the name that the endpoint knows it by
    endpoint: str | None = machinery(None)  # OpenAI-compatible base URL, ending in /v1; None: the run starts a server
    max_pause_s: float = 0.8  # a longer silence ends an utterance
    max_words: int = 25  # of an utterance, or of what an action of a window may cite
    window_words: int | None = None  # words in a request; None: one utterance, all that a small model can read
    overlap_words: int = 40  # of one window with the next; an action longer than that may be seen by no window whole
    max_tokens: int = 120  # of an answer on one utterance; on a window twice as many for every max_words of it
    min_grounded: float = 1.0  # share of an action's words, joining ones aside, that must have been spoken
    # At a time, for one video; a server with one slot gives reproducible answers to one after the other.
    requests_in_flight: int = machinery(1)
    timeout_s: float = machinery(120.0)  # of one attempt
    patience_s: float = machinery(300.0)  # with a server that keeps failing

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}; write it as http://host:port/v1")
        if self.max_words < 2:
            raise ValueError(f"max_words is {self.max_words}; an action needs at least 2 words")
        if not 0 < self.min_grounded <= 1:
            raise ValueError(f"min_grounded is {self.min_grounded}; it is a share in (0, 1]")
        if self.window_words is not None and not 0 <= self.overlap_words < self.window_words:
            raise ValueError(
                f"overlap_words is {self.overlap_words}; it must be at least 0 and less than window_words, "
                f"{self.window_words}"
            )
        if self.requests_in_flight < 1:
            raise ValueError(f"requests_in_flight is {self.requests_in_flight}; it must be at least 1")
        if self.max_pause_s <= 0 or self.max_tokens < 1 or self.timeout_s <= 0 or self.patience_s < 0:
            raise ValueError("max_pause_s, max_tokens and timeout_s must be positive, patience_s not negative")


def write_actions(
    video: Video, words: tuple[Word, ...], *, config: ActionsConfig, tool: ChatModel | None
) -> Iterator[Action | Reject]:
    """The actions of one video, in (start, end, index) order, then what did not hold and why.

    With annotated segments: one action a segment, as the annotators wrote it, `action_index` the segment's number.
    Without: one action or reject an utterance, or a run of words that windows settled, `action_index` its number. A
    video without any action gets the video-level reject no_actions. Raises ModelServerError where the server cannot be
    used.
    """
    take = _from_utterances if config.window_words is None else _from_windows
    found = list(_annotated(video) if video.segments else take(video, words, config, tool))
    actions = [row for row in found if isinstance(row, Action)]
    yield from sorted(actions, key=lambda row: (row.start_s, row.end_s, row.action_index))
    rejects = [row for row in found if isinstance(row, Reject)]
    yield from rejects
    if not actions:
        counts = Counter(reject.reason.value for reject in rejects)
        detail = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))
        yield _reject(video, None, Reason.NO_ACTIONS, detail or "no words were spoken")


def origins(actions: Iterable[Action], rejects: Iterable[Reject]) -> Counter[str]:
    """How the actions came to be: counts of "manual", "rewritten", "verbatim" and "rejected".

    Rejected are all answers that did not hold, talk that is no action among them.
    """
    counts: Counter[str] = Counter()
    for action in actions:
        counts["manual" if action.origin == "manual" else "verbatim" if is_verbatim(action) else "rewritten"] += 1
    judged = (Reason.UNUSABLE_ANSWER, Reason.NOT_AN_ACTION, Reason.UNGROUNDED_ACTION)
    counts["rejected"] = sum(reject.reason in judged and reject.action_index is not None for reject in rejects)
    return counts


def is_verbatim(action: Action) -> bool:
    """Whether the action's words stand side by side, in this order, in the speech that it rests on."""
    text, spoken = (" ".join(re.findall(r"\w+", part.lower())) for part in (action.text, action.raw_text))
    return f" {text} " in f" {spoken} "


def _reject(video: Video, index: int | None, reason: Reason, detail: str) -> Reject:
    return Reject(
        narrative=video.narrative, path=video.path, action_index=index, stage=NAME, reason=reason, detail=detail
    )


def _annotated(video: Video) -> Iterator[Action | Reject]:
    for index, segment in enumerate(video.segments):
        text = " ".join(segment.text.split())
        if not text or not 0 <= segment.start_s < min(segment.end_s, video.duration_s):
            span = f"[{segment.start_s:g}, {segment.end_s:g})"
            detail = f"segment {index} {span} {text!r} of a video of {video.duration_s:g} s"
            yield _reject(video, index, Reason.BAD_ANNOTATION, detail)
            continue
        yield Action(
            narrative=video.narrative,
            action_index=index,
            text=text,
            start_s=segment.start_s,
            end_s=min(segment.end_s, video.duration_s),  # as the clip of the same segment
            origin="manual",
            raw_text=segment.text,
        )


def _in_flight(ask: Callable[[T], R], questions: Iterable[T], config: ActionsConfig) -> Iterator[R]:
    """ask(question) of each question, `requests_in_flight` of them at a time, in the order in which they end: so the
    first error is raised at once."""
    if config.requests_in_flight == 1:
        yield from map(ask, questions)
        return
    # Its threads are daemons: after an error, or Ctrl-C, nobody waits for answers that nobody needs.
    with ThreadPool(config.requests_in_flight) as pool:
        yield from pool.imap_unordered(ask, questions)


def _asked(
    messages: list[dict[str, str]], schema: dict[str, Any], max_tokens: int, tool: ChatModel | None
) -> dict[str, Any]:
    if tool is None:
        raise ModelServerError(
            "no language model server: this run started none; set actions.endpoint to an OpenAI-compatible URL"
        )
    return tool.complete(messages, json_schema=schema, max_tokens=max_tokens)


# --- utterances -------------------------------------------------------------------------------------------------------


def _from_utterances(
    video: Video, words: Sequence[Word], config: ActionsConfig, tool: ChatModel | None
) -> Iterator[Action | Reject]:
    def ask(numbered: tuple[int, Sequence[Word]]) -> Action | Reject:
        index, spoken = numbered[0], _Spoken(numbered[1])
        if not spoken.openings or len(spoken.words) < 2 or len(spoken.text) > MAX_UTTERANCE_CHARS:
            return _reject(video, index, Reason.NOT_AN_ACTION, f"nothing to do in {_shown(spoken.text)}")
        try:
            answer = _asked(_messages(spoken), spoken.schema(), config.max_tokens, tool)
        except UnusableAnswerError as error:
            return _reject(video, index, Reason.UNUSABLE_ANSWER, f"{_shown(spoken.text)}: {error}")
        return _judged(video, index, spoken, answer, config)

    parts = utterances(words, max_pause_s=config.max_pause_s, max_words=config.max_words)
    yield from sorted(_in_flight(ask, enumerate(parts), config), key=lambda row: row.action_index or 0)


def utterances(words: Sequence[Word], *, max_pause_s: float, max_words: int) -> Iterator[Sequence[Word]]:
    """The words in runs that end at a sentence's end or before a pause longer than `max_pause_s`.

    A run of more than `max_words` is divided where the silence is longest, then after a comma, then nearest to its
    middle, until no part is too long.
    """
    begin = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or _ends_sentence(words[end - 1]) or _pause(words, end) > max_pause_s:
            yield from _divided(words[begin:end], max_words)
            begin = end


def _divided(words: Sequence[Word], max_words: int) -> Iterator[Sequence[Word]]:
    # A loop over a stack, not recursion: a three-hour caption without a full stop is one run.
    parts = [words]
    while parts:
        part = parts.pop()
        if len(part) <= max_words:
            yield part
            continue
        middle = len(part) / 2
        window = range(1, len(part)) if len(part) <= 8 * max_words else range(max_words // 2, 2 * max_words)
        cut = max(window, key=lambda i: (_pause(part, i), part[i - 1].text.endswith(","), -abs(i - middle), -i))
        parts += [part[cut:], part[:cut]]


def _pause(words: Sequence[Word], i: int) -> float:
    """Silence before word i, in seconds, to the millisecond: what is equal but for rounding must be equal."""
    return round(max(0.0, words[i].start_s - words[i - 1].end_s), 3)


def _ends_sentence(word: Word) -> bool:
    return word.text.rstrip("\"'”’)]").endswith((".", "!", "?", "…", "。", "！", "？"))


class _Spoken:
    """One utterance as the model sees it: its text, and the schema of the answers that it allows."""

    def __init__(self, words: Sequence[Word]) -> None:
        self.words = words
        # What looks like a chat template's marks must not become one in the server.
        self.text = " ".join(" ".join(re.sub(r"[<>|\x00-\x1f\x7f]", " ", word.text) for word in words).split())
        self.bare = [_bare(word.text) for word in words]
        self.tags = {
            f"{bare}:{word.word_id}": i for i, (word, bare) in enumerate(zip(words, self.bare, strict=True)) if bare
        }
        self.openings = sorted({form for bare in self.bare if _may_open(bare) for form in _imperatives(bare)})

    def schema(self) -> dict[str, Any]:
        """JSON schema: `none`, or an action in the words of the utterance with its first and last word."""
        allowed = sorted({*JOINING_WORDS, *(form for bare in self.bare if bare for form in base_forms(bare))})
        pattern = (
            f"^({_either(self.openings)})( ({_either(allowed)})){{1,{min(len(self.words), MAX_ACTION_WORDS - 1)}}}$"
        )
        cited = {"enum": list(self.tags)}
        return {
            "anyOf": [
                _closed({"action": {"const": NO_ACTION}}),
                _closed({"action": {"type": "string", "pattern": pattern}, "first": cited, "last": cited}),
            ]
        }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _either(words: Iterable[str]) -> str:
    return "|".join(word.replace(".", "[.]") for word in words)


def _judged(
    video: Video, index: int, spoken: _Spoken, answer: dict[str, Any], config: ActionsConfig
) -> Action | Reject:
    """The action, or why it does not hold.

    An action rests on the cited words, and on the words of the same utterance that it repeats: a weak model cites too
    few. Each word but the joining ones must have a spoken word of its own.
    """
    text = str(answer["action"])
    if text == NO_ACTION:
        return _reject(video, index, Reason.NOT_AN_ACTION, _shown(spoken.text))
    cited = sorted((spoken.tags[answer["first"]], spoken.tags[answer["last"]]))
    said = [word for word in text.split() if word not in JOINING_WORDS]
    grounds = _grounds(said, spoken.bare, first=cited[0], last=cited[1])
    found = [place for place in grounds if place is not None]
    problem = None
    if len(found) < config.min_grounded * len(grounds) or not found or grounds[0] is None:
        problem = f"{len(found)} of {len(grounds)} words are spoken"
    elif text.split()[-1] in HANGING_WORDS:
        problem = "it ends in the middle"
    if problem is not None:
        return _reject(video, index, Reason.UNGROUNDED_ACTION, f"{_shown(text)} for {_shown(spoken.text)}: {problem}")
    first, last = min(cited[0], *found), max(cited[1], *found)
    rests_on = spoken.words[first : last + 1]
    if max(word.end_s for word in rests_on) <= min(word.start_s for word in rests_on):
        return _reject(video, index, Reason.UNGROUNDED_ACTION, f"{_shown(text)}: its words take no time")
    return _action(video, index, text, rests_on)


# --- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What an answer says of the words [first, end) of a transcript: that an action rests on them, or why none does.

    An action cannot do without the words [core_first, core_end), in which it says what was spoken.
    """

    first: int
    end: int
    reason: Reason | None = None  # None: an action
    text: str = ""  # of the action, or what is said of the words
    core_first: int = 0
    core_end: int = 0


def _from_windows(
    video: Video, words: Sequence[Word], config: ActionsConfig, tool: ChatModel | None
) -> Iterator[Action | Reject]:
    def ask(span: tuple[int, int]) -> list[Claim]:
        window = _Window(video.narrative, words, *span, config)
        if not window.tags:
            return [Claim(*span, Reason.NOT_AN_ACTION, "no word that can be read")]
        try:
            answer = _asked(window.messages(), window.schema(), window.max_tokens, tool)
        except UnusableAnswerError as error:
            return [Claim(*span, Reason.UNUSABLE_ANSWER, str(error))]
        return [window.claim(item) for item in answer["actions"]]

    claims = chain.from_iterable(_in_flight(ask, list(windows(words, config)), config))
    for index, claim in enumerate(settle(len(words), claims)):
        rests_on = words[claim.first : claim.end]
        start_s, end_s = min(word.start_s for word in rests_on), max(word.end_s for word in rests_on)
        if claim.reason is None and start_s < end_s:
            yield _action(video, index, claim.text, rests_on)
            continue
        reason, said = claim.reason, claim.text
        if reason is None:
            reason, said = Reason.UNGROUNDED_ACTION, f"{_shown(claim.text)}: its words take no time"
        spoken = _shown(" ".join(word.text for word in rests_on[:MAX_UTTERANCE_CHARS]))
        ids = f"words {rests_on[0].word_id}-{rests_on[-1].word_id}"
        yield _reject(video, index, reason, f"{ids} {spoken}{': ' if said else ''}{said}")


def windows(words: Sequence[Word], config: ActionsConfig) -> Iterator[tuple[int, int]]:
    """Places [begin, end) of windows that hold every word; each overlaps the one before it.

    A window has at most `window_words` words, of which the next holds the last `overlap_words`; fewer of both, in
    proportion, where the words are so long that it would not fit the model's context.
    """
    assert config.window_words is not None
    most = config.window_words
    begin = done = 0
    while done < len(words):
        end, num_bytes = begin, 0
        while end < min(begin + most, len(words)):
            num_bytes += len(_tag(words[end]).encode()) + 1
            if num_bytes > BYTES_A_WORD * most and end > begin:
                break
            end += 1
        if end > done:  # else its words are too long for more than what the one before it holds
            yield begin, end
            done = end
        begin = end - (end - begin) * config.overlap_words // most


def settle(num_words: int, claims: Iterable[Claim]) -> list[Claim]:
    """The claims that stand, in the order of the words, cut so that each of `num_words` words is in exactly one.

    Actions come first, those that rest on more words before the others. One that shares words with an action that
    stands gives them up where it can do without; where it cannot, both tell the same thing (two windows have seen it,
    or the answer repeats itself), and it falls: what words it has alone are a reject that names it. Then the rejects,
    those on fewer words first. Words of which nothing is said are not_an_action. The order of the claims, and so that
    of the windows, changes nothing.
    """
    owners: list[Claim | None] = [None] * num_words
    actions, rejects = set[Claim](), set[Claim]()
    for claim in claims:
        (actions if claim.reason is None else rejects).add(claim)
    for claim in sorted(actions, key=_rank):
        first, end = claim.first, claim.end
        while first < claim.core_first and owners[first] is not None:
            first += 1
        while end > claim.core_end and owners[end - 1] is not None:
            end -= 1
        if any(owners[first:end]):
            rejects.add(replace(claim, reason=Reason.NOT_AN_ACTION, text=f"{_shown(claim.text)} is told with others"))
        else:
            owners[first:end] = [claim] * (end - first)
    for claim in sorted(rejects, key=_rank):
        for place in range(claim.first, claim.end):
            owners[place] = owners[place] or claim
    left_out = Claim(0, num_words, Reason.NOT_AN_ACTION, "the answer leaves them out")
    runs = [[place for place, _ in run] for _, run in groupby(enumerate(owners), key=lambda owned: id(owned[1]))]
    return [replace(owners[run[0]] or left_out, first=run[0], end=run[-1] + 1) for run in runs]


def _rank(claim: Claim) -> tuple[Any, ...]:
    length = claim.end - claim.first
    return (
        length if claim.reason else -length,
        claim.first,
        claim.text,
        claim.core_first,
        claim.core_end,
        claim.reason,
    )


def _tag(word: Word) -> str:
    """The word as windows show and cite it, `whisk:12`: nothing in it is a quote, a bracket or a template's mark. ""
    where it has no letters, or far too many."""
    bare = _bare(word.text) if len(word.text) <= MAX_WORD_CHARS else ""
    return f"{bare}:{word.word_id}" if bare else ""


class _Window:
    """A stretch of a transcript as the model sees it, and what its answer claims."""

    def __init__(self, narrative: str, words: Sequence[Word], begin: int, end: int, config: ActionsConfig) -> None:
        self.begin, self.words, self.config = begin, words[begin:end], config
        self.bare = [_bare(word.text) for word in self.words]
        parts = utterances(self.words, max_pause_s=config.max_pause_s, max_words=config.max_words)
        self.edges = [0, *accumulate(map(len, parts))]  # places between utterances
        self.tags = {tag: place for place, word in enumerate(self.words) if (tag := _tag(word))}
        # The same words may be spoken elsewhere: the answer repeats this, so that it can be for no other question.
        self.name = digest([narrative, begin, [word.text for word in self.words]])[:8]
        self.max_tokens = 2 * config.max_tokens * -(-len(self.words) // config.max_words)

    def text(self) -> str:
        """What is shown: an utterance a line, each word with its id."""
        return "\n".join([f"window {self.name}", *tagged_lines(self.words, self.config)])

    def messages(self) -> list[dict[str, str]]:
        prompt = _prompt(windowed=True)
        examples = [
            {"role": role, "content": content}
            for example in prompt["examples"]
            for role, content in (("user", "\n".join(example["shown"])), ("assistant", json.dumps(example["answer"])))
        ]
        return [{"role": "system", "content": prompt["system"]}, *examples, {"role": "user", "content": self.text()}]

    def schema(self) -> dict[str, Any]:
        """JSON schema: the window's name, and a list of {action, first, last} whose words are the window's."""
        word = {"$ref": "#/$defs/word"}
        text = {"type": "string", "minLength": 1, "maxLength": MAX_ACTION_CHARS}
        most = max(1, len(self.words) // 3)
        actions = {
            "type": "array",
            "maxItems": most,
            "items": _closed({"action": text, "first": word, "last": word}),
        }
        return {
            **_closed({"window": {"const": self.name}, "actions": actions}),
            "$defs": {"word": {"enum": [*self.tags]}},
        }

    def claim(self, item: dict[str, str]) -> Claim:
        """What one item of the answer says of the words that it cites.

        An action rests on these, and on what it repeats of the rest of their last utterance: models cite too few. What
        it repeats of the utterance before them ("whisk them": the eggs) is spoken, too, but no part of it.
        """
        first, last = sorted((self.tags[item["first"]], self.tags[item["last"]]))
        text = re.sub(r":\d+\b", "", item["action"])  # some copy the ids as well
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split()).rstrip(".")
        if text.lower() == NO_ACTION:
            return Claim(self.begin + first, self.begin + last + 1, Reason.NOT_AN_ACTION)
        said = [bare for word in text.split() if (bare := _bare(word))]
        content = [bare for bare in said if bare not in FUNCTION_WORDS]
        start, stop = max(edge for edge in self.edges if edge <= first), min(edge for edge in self.edges if edge > last)
        grounds = _grounds(content, self.bare[start:stop], first=first - start, last=last - start)
        found = [start + place for place in grounds if place is not None]
        last = max([last, *found])
        problem = None
        if last - first >= self.config.max_words:
            problem = f"it cites {last - first + 1} words, more than {self.config.max_words}"
        elif not 2 <= len(said) <= MAX_ACTION_WORDS:
            problem = f"an action has 2 to {MAX_ACTION_WORDS} words"
        elif not _may_open(said[0]) or grounds[0] is None or found[0] < first:
            problem = f"{said[0]!r} is not what they tell to do"
        elif len(found) < self.config.min_grounded * len(grounds):
            problem = f"{len(found)} of {len(grounds)} words are spoken there"
        elif said[-1] in HANGING_WORDS:
            problem = "it ends in the middle"
        span = self.begin + first, self.begin + last + 1
        if problem is not None:
            return Claim(*span, Reason.UNGROUNDED_ACTION, f"{_shown(text)}: {problem}")
        core = [place for place in found if place >= first]
        return Claim(*span, None, text, self.begin + min(core), self.begin + max(core) + 1)


def tagged_lines(words: Sequence[Word], config: ActionsConfig) -> Iterator[str]:
    """The words as windows show them, an utterance a line: "peel:7 the:8 carrots:9."."""
    for part in utterances(words, max_pause_s=config.max_pause_s, max_words=config.max_words):
        yield " ".join(tag + (word.text[-1] if word.text[-1] in ".,!?" else "") for word in part if (tag := _tag(word)))


# --- both -------------------------------------------------------------------------------------------------------------


def _action(video: Video, index: int, text: str, rests_on: Sequence[Word]) -> Action:
    return Action(
        narrative=video.narrative,
        action_index=index,
        text=text[0].upper() + text[1:],
        start_s=min(word.start_s for word in rests_on),
        end_s=max(word.end_s for word in rests_on),
        origin="asr",
        raw_text=" ".join(word.text for word in rests_on),
        word_first=rests_on[0].word_id,
        word_end=rests_on[-1].word_id + 1,
    )


def _grounds(action: Sequence[str], bare: Sequence[str], *, first: int, last: int) -> list[int | None]:
    """For each word of an action the spoken word that it is: in [first, last] or nearest to it."""
    grounds: list[int | None] = []
    taken: set[int] = set()
    for word in action:
        places = [i for i, said in enumerate(bare) if said and i not in taken and base_forms(said) & base_forms(word)]
        place = min(places, key=lambda i: (max(first - i, 0, i - last), i), default=None)
        grounds.append(place)
        if place is not None:
            taken.add(place)
    return grounds


def _bare(text: str) -> str:
    """A word without case and punctuation; "" where nothing is left."""
    return re.sub(r"[^\w'/%°.-]|_", "", text.lower().replace("’", "'")).strip("'-./")


def _may_open(bare: str) -> bool:
    """Whether an action may begin with the word: it has content, is no number and no adverb in -ly."""
    return bool(
        bare
        and bare not in FUNCTION_WORDS
        and bare not in NUMBER_WORDS
        and not bare[0].isdigit()
        and not (bare.endswith("ly") and len(bare) > 5)
    )


def _imperatives(bare: str) -> frozenset[str]:
    """The forms of a spoken word that an action may begin with: never "slicing" where "slice" can be had."""
    forms = base_forms(bare)
    return forms - {bare} if bare.endswith("ing") and len(forms) > 1 else forms


@cache
def base_forms(word: str) -> frozenset[str]:
    """The word, and what it may be an inflection of: {"slicing", "slic", "slice"}; English endings only."""
    forms = {word}
    for ending in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 3 or (ending == "s" and stem.endswith("s")):
            continue
        forms.add(stem)
        if ending in ("ing", "ed"):
            forms.add(stem + "e")
            if stem[-1] == stem[-2]:
                forms.add(stem[:-1])
        if ending in ("es", "ed") and stem.endswith("i"):
            forms.add(stem[:-1] + "y")
    return frozenset(forms)


def _messages(spoken: _Spoken) -> list[dict[str, str]]:
    prompt = _prompt()
    messages = [{"role": "system", "content": prompt["system"]}]
    for example in prompt["examples"]:
        answer = {key: example[key] for key in ("action", "first", "last") if key in example}
        messages.append({"role": "user", "content": example["said"]})
        messages.append({"role": "assistant", "content": json.dumps(answer)})
    return [*messages, {"role": "user", "content": spoken.text}]


@cache
def _prompt(*, windowed: bool = False) -> dict[str, Any]:
    prompt: dict[str, Any] = json.loads((WINDOW_PROMPT if windowed else PROMPT).read_text(encoding="utf-8"))
    return prompt


def _shown(text: str, most: int = 120) -> str:
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def model_identity(config: ActionsConfig) -> str:
    """What the rows depend on beside the configuration: the model, and the prompt by its digest."""
    model = f"{config.model}@external" if config.endpoint else modelstore.identity(config.model)
    prompt = _prompt() if config.window_words is None else _prompt(windowed=True)
    return f"{model}+prompt-{digest(prompt)[:12]}"


def load_model(config: ActionsConfig, places: Places) -> ChatModel | None:
    """The way to the model: the configured endpoint, or the server that the run started; None where there is neither
    (a run on annotated videos needs none)."""
    urls = (config.endpoint,) if config.endpoint else places.endpoints.get(NAME, ())
    if not urls:
        return None
    return ChatModel(urls, config.model, timeout_s=config.timeout_s, patience_s=config.patience_s)


STAGE = Stage(
    name=NAME,
    reads=(Video, Word),
    writes=Action,
    run=write_actions,
    config=ActionsConfig(),
    needs=Needs(cpus=0.25, workers=2),  # it waits for the server, which has one slot in the embedded profile
    load=load_model,
    model=model_identity,
    version=1,
)
