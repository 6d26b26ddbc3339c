"""What did not pass, and why: the closed list of reasons."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import NonNegativeInt

from cookgen.records.record import Record


class Reason(StrEnum):
    """Why something did not pass. The list is closed; each word is stable once released."""

    # the source and the file
    VIDEO_MISSING = "video_missing"  # annotated, but no such file in the folder
    BAD_NAME = "bad_name"  # a file name that is not UTF-8
    OUTSIDE_FOLDER = "outside_folder"  # a symbolic link that leaves the folder
    BAD_ANNOTATION = "bad_annotation"  # a segment without text, without length, or past the end of the video
    EMPTY_FILE = "empty_file"
    UNREADABLE_FILE = "unreadable_file"  # the operating system refuses to read it
    NOT_A_VIDEO = "not_a_video"  # no container that we know, a playlist, a still image
    NO_VIDEO_STREAM = "no_video_stream"
    DECODE_ERROR = "decode_error"  # frames cannot be decoded
    TRUNCATED = "truncated"  # the file ends before its streams do
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_SMALL = "too_small"
    DUPLICATE_VIDEO = "duplicate_video"  # the same bytes as a video that the source lists before it
    # clips
    NO_SHOTS = "no_shots"  # no shot of a length that the configuration allows
    BLACK = "black"  # nothing is to be seen
    FROZEN = "frozen"  # the picture does not change
    SLIDESHOW = "slideshow"  # a video of pictures that do not change
    PAST_END = "past_end"  # a span with no frame of the video in it
    ENCODE_ERROR = "encode_error"
    # speech and actions
    NO_AUDIO = "no_audio"
    NO_SPEECH = "no_speech"
    BAD_SUBTITLES = "bad_subtitles"
    WRONG_LANGUAGE = "wrong_language"  # another language is spoken than the configured one
    NO_ACTIONS = "no_actions"  # speech, but no action in it that holds
    UNUSABLE_ANSWER = "unusable_answer"  # the language model's answer broke the schema
    NOT_AN_ACTION = "not_an_action"  # talk that the language model says is no action
    UNGROUNDED_ACTION = "ungrounded_action"  # says what its cited words do not, or cites none
    # captions, matches and checks
    EMPTY_CAPTION = "empty_caption"
    UNMATCHED = "unmatched"  # a clip without an action, or an action without a clip
    CHECK_FAILED = "check_failed"  # a number of the checks that shards.require does not allow
    TOO_FEW_STEPS = "too_few_steps"
    # the pipeline itself
    INTERNAL_ERROR = "internal_error"  # a stage failed, which says nothing of the video: tried again by the next runs


class Reject(Record):
    """One thing that did not pass. Video-level when both indices are None: the video stops there."""

    TABLE: ClassVar[str] = "rejects"

    narrative: str | None
    path: str
    clip_index: NonNegativeInt | None = None
    action_index: NonNegativeInt | None = None
    stage: str
    reason: Reason
    detail: str = ""

    @property
    def is_video_level(self) -> bool:
        """Whether the whole video is rejected, rather than one clip or action of it."""
        return self.clip_index is None and self.action_index is None
