"""actions: what the speech tells the viewer to do, as short imperative sentences with their spans.

A request holds one utterance: words up to a sentence's end, a long pause, or `max_words`. The model answers in the
utterance's own words and cites the first and the last word that the action rests on, as `whisk:12`: word and word id.
The ids stand in the answer's JSON schema, not in the question: among numbers a small model loses the sentence, while
in the answer it has only to copy a word, and the schema holds the id that belongs to it. So an answer that was meant
for other words cannot pass. Times are computed from the cited words, never asked for.

There is no way from the speech to an action but through an answer that holds: no fallback to what was said.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

from cookgen import modelstore
from cookgen.config import machinery
from cookgen.errors import ModelServerError
from cookgen.files import digest
from cookgen.perception.llm import ChatModel, UnusableAnswerError
from cookgen.records import Action, Reason, Reject, Video, Word
from pipelines.stage import Needs, Places, Stage

PROMPT = Path(__file__).with_name("prompts") / "actions.json"
NAME = "actions"
NO_ACTION = "none"
MAX_ACTION_WORDS = 20
MAX_UTTERANCE_CHARS = 400  # hostile captions: one "word" may be a page long

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
    max_words: int = 25  # of an utterance
    max_tokens: int = 120  # of an answer
    min_grounded: float = 1.0  # share of an action's words, joining ones aside, that must have been spoken
    timeout_s: float = machinery(120.0)  # of one attempt
    patience_s: float = machinery(300.0)  # with a server that keeps failing

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}; write it as http://host:port/v1")
        if self.max_words < 2:
            raise ValueError(f"max_words is {self.max_words}; an action needs at least 2 words")
        if not 0 < self.min_grounded <= 1:
            raise ValueError(f"min_grounded is {self.min_grounded}; it is a share in (0, 1]")
        if self.max_pause_s <= 0 or self.max_tokens < 1 or self.timeout_s <= 0 or self.patience_s < 0:
            raise ValueError("max_pause_s, max_tokens and timeout_s must be positive, patience_s not negative")


def write_actions(
    video: Video, words: tuple[Word, ...], *, config: ActionsConfig, tool: ChatModel | None
) -> Iterator[Action | Reject]:
    """The actions of one video, in (start, end, index) order, then what did not hold and why.

    With annotated segments: one action a segment, as the annotators wrote it, `action_index` the segment's number.
    Without: one action or reject an utterance, `action_index` the utterance's number. A video without any action gets
    the video-level reject no_actions. Raises ModelServerError where the server cannot be used.
    """
    found = list(_annotated(video) if video.segments else _from_speech(video, words, config, tool))
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


def _from_speech(
    video: Video, words: Sequence[Word], config: ActionsConfig, tool: ChatModel | None
) -> Iterator[Action | Reject]:
    for index, utterance in enumerate(utterances(words, max_pause_s=config.max_pause_s, max_words=config.max_words)):
        spoken = _Spoken(utterance)
        if not spoken.openings or len(utterance) < 2 or len(spoken.text) > MAX_UTTERANCE_CHARS:
            yield _reject(video, index, Reason.NOT_AN_ACTION, f"nothing to do in {_shown(spoken.text)}")
            continue
        if tool is None:
            raise ModelServerError(
                "no language model server: this run started none; set actions.endpoint to an OpenAI-compatible URL"
            )
        try:
            answer = tool.complete(_messages(spoken), json_schema=spoken.schema(), max_tokens=config.max_tokens)
        except UnusableAnswerError as error:
            yield _reject(video, index, Reason.UNUSABLE_ANSWER, f"{_shown(spoken.text)}: {error}")
            continue
        yield _judged(video, index, spoken, answer, config)


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
    grounds = _grounds(text.split(), spoken.bare, first=cited[0], last=cited[1])
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
    start_s, end_s = min(word.start_s for word in rests_on), max(word.end_s for word in rests_on)
    if end_s <= start_s:
        return _reject(video, index, Reason.UNGROUNDED_ACTION, f"{_shown(text)}: its words take no time")
    return Action(
        narrative=video.narrative,
        action_index=index,
        text=text[0].upper() + text[1:],
        start_s=start_s,
        end_s=end_s,
        origin="asr",
        raw_text=" ".join(word.text for word in rests_on),
        word_first=rests_on[0].word_id,
        word_end=rests_on[-1].word_id + 1,
    )


def _grounds(action: Sequence[str], bare: Sequence[str], *, first: int, last: int) -> list[int | None]:
    """For each word of an action, joining ones aside, the spoken word that it is: in [first, last] or nearest to it."""
    grounds: list[int | None] = []
    taken: set[int] = set()
    for word in action:
        if word in JOINING_WORDS:
            continue
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
def _prompt() -> dict[str, Any]:
    prompt: dict[str, Any] = json.loads(PROMPT.read_text(encoding="utf-8"))
    return prompt


def _shown(text: str, most: int = 120) -> str:
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def model_identity(config: ActionsConfig) -> str:
    """What the rows depend on beside the configuration: the model, and the prompt by its digest."""
    model = f"{config.model}@external" if config.endpoint else modelstore.identity(config.model)
    return f"{model}+prompt-{digest(_prompt())[:12]}"


def load_model(config: ActionsConfig, places: Places) -> ChatModel | None:
    """The way to the model: the configured endpoint, or the server that the run started; None where there is neither
    (a run on annotated videos needs none)."""
    urls = (config.endpoint,) if config.endpoint else places.endpoints.get(NAME, ())
    if not urls:
        return None
    return _InTurn(urls, config.model, timeout_s=config.timeout_s, patience_s=config.patience_s)


class _InTurn(ChatModel):
    """One request to each server after the other. Goes as soon as ChatModel itself takes several URLs."""

    def __init__(self, urls: Sequence[str], model: str, **patience: float) -> None:
        super().__init__(urls[0], model, **patience)
        self._asks = cycle([super().complete, *(ChatModel(url, model, **patience).complete for url in urls[1:])])

    def complete(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return next(self._asks)(*args, **kwargs)


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
