"""The records: one frozen model a table, and the three JSON documents of a shard set."""

from cookgen.records.action import Action
from cookgen.records.caption import Caption
from cookgen.records.check import CLIP_CHECKS, NARRATIVE_CHECKS, SET_CHECKS, Check, Score, is_clip_check
from cookgen.records.clip import Clip
from cookgen.records.evidence import Evidence, meaning_of
from cookgen.records.features import Features
from cookgen.records.manifest import ConfigStamp, Manifest, Shard, Split
from cookgen.records.match import Match
from cookgen.records.narrative import (
    SUFFIXES,
    Lineage,
    Narrative,
    Sample,
    SampleAction,
    SampleCaption,
    SampleClip,
    SampleKeyframe,
    SampleMatch,
    SampleVideo,
)
from cookgen.records.record import FORMAT, Record, faults
from cookgen.records.reject import Reason, Reject
from cookgen.records.speech import Word
from cookgen.records.video import Crop, Segment, SourceVideo, Video, hashed_split

TABLES: tuple[type[Record], ...] = (Video, Clip, Word, Action, Caption, Match, Check, Reject, Narrative)

__all__ = [
    "CLIP_CHECKS",
    "FORMAT",
    "NARRATIVE_CHECKS",
    "SET_CHECKS",
    "SUFFIXES",
    "TABLES",
    "Action",
    "Caption",
    "Check",
    "Clip",
    "ConfigStamp",
    "Crop",
    "Evidence",
    "Features",
    "Lineage",
    "Manifest",
    "Match",
    "Narrative",
    "Reason",
    "Record",
    "Reject",
    "Sample",
    "SampleAction",
    "SampleCaption",
    "SampleClip",
    "SampleKeyframe",
    "SampleMatch",
    "SampleVideo",
    "Score",
    "Segment",
    "Shard",
    "SourceVideo",
    "Split",
    "Video",
    "Word",
    "faults",
    "hashed_split",
    "is_clip_check",
    "meaning_of",
]
