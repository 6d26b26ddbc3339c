"""`make bench-dataset OUT=shards`: what reading a shard set costs, beside other readers of the same bytes. JSON lines.

The clips of the set are written again under new names, by the pipeline's own writer, until the set is large enough.
Then each measure, in a fresh process: ours and its peers by turns, from a warm page cache, what is opened once not
counted. A ratio is ours / peer in speed (above 1: ours is faster): the median over the rounds, [least, greatest], and
the `bar` where there is one. Peers that bring their own world live in .venv-bench (`make bench-env`); without it their
lines say so.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro

from cookgen import load_split
from cookgen.dataset.decode import read_frames
from cookgen.dataset.tables import read_table, table_path
from cookgen.dataset.tar import tar_member
from cookgen.errors import CookgenError
from cookgen.files import canonical_json, file_sha256, narrative_name, write_atomic
from cookgen.records import (
    FORMAT,
    SUFFIXES,
    Action,
    Caption,
    Check,
    Clip,
    Features,
    Manifest,
    Match,
    Narrative,
    Record,
    SourceVideo,
    Video,
    Word,
)
from pipelines.stage import Places, Result, Stage, VideoState
from pipelines.stages.shards import ShardsConfig, write_shards

ROOT = Path(__file__).resolve().parents[2]
RECORDS: tuple[type[Record], ...] = (Video, Clip, Word, Action, Caption, Match, Check)
SHAPES = ((768,), (64, 1024), (256, 1024))  # of cached features: a pooled vector, a few tokens, a grid of tokens
NUM_FRAMES = 8
BATCH_SIZE = 4
MIB = 2**20


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


# --- the sets that are read


def make_bench_set(source: Path, out: Path, *, num_bytes: int, num_shards: int = 8) -> None:
    """A shard set in `out` of at least `num_bytes` in about `num_shards` shards, from all clips of the set `source`.

    Every narrative of `source` comes again and again, each time under a new name: same media, same rows of the tables.
    """
    index = list(read_table(table_path(source, Narrative), Narrative))
    rows: dict[tuple[str, type[Record]], list[Any]] = defaultdict(list)
    for record in RECORDS:
        for row in read_table(table_path(source, record), record):
            rows[row.narrative, record].append(row)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        places = Places(videos=Path(folder), media=Path(folder, "media"), scratch=Path(folder))
        lineage = {}
        for split in {row.split for row in index}:
            for step in load_split(split, source, unit="clip"):
                lineage[step.row.narrative] = step.sample.lineage
                for suffix in ("mp4", "jpg"):
                    content = step.read(suffix)
                    write_atomic(places.medium(hashlib.sha256(content).hexdigest(), f".{suffix}"), content)
        config = ShardsConfig(min_steps=1, target_shard_bytes=num_bytes // num_shards)
        stages = tuple(
            Stage(name=record.TABLE, reads=(), writes=record, run=tuple, config=config, version=1) for record in RECORDS
        )
        states = []
        for again in range(-(-num_bytes // sum(row.num_bytes for row in index))):
            for row in index:
                (video,) = rows[row.narrative, Video]
                video_id = f"{again:05d}-{video.video_id}"
                name = narrative_name(video.source, video_id)
                new = {"narrative": name, "video_id": video_id, "path": f"{video_id}.mp4", "split": "train"}
                state = VideoState(SourceVideo(source=video.source, num_bytes=video.num_bytes, mtime_ns=0, **new))
                for stage in stages:
                    fields = {field: new[field] for field in stage.writes.model_fields if field in new}
                    state = state.with_result(
                        Result(
                            stage=stage.name,
                            key=name,
                            narrative=name,
                            rows=tuple(old.model_copy(update=fields) for old in rows[row.narrative, stage.writes]),
                            rejects=(),
                            lineage=lineage[row.narrative][stage.name],
                            seconds=0.0,
                        )
                    )
                states.append(state)
        write_shards(states, (), config=config, run_config=config, places=places, out=out, stages=stages)


def add_features(root: Path, shape: tuple[int, ...]) -> None:
    """Sidecars of random numbers beside all shards; and the same arrays as loose files, `loose/{name}/{key}.npy` a clip
    and `loose/{name}/{narrative}.npy` a narrative."""
    name = feature_name(shape)
    manifest = Manifest.model_validate_json((root / "dataset.json").read_bytes())
    shards = {shard.path: shard.sha256 for split in manifest.splits.values() for shard in split.shards}
    numbers = np.random.default_rng(0)
    arrays: dict[str, list[Any]] = defaultdict(list)
    for shard in shards:
        sidecar = root / "features" / name / shard
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(sidecar, "w", format=tarfile.PAX_FORMAT) as tar:
            for key in keys_of(root / shard):
                array = numbers.standard_normal(shape, np.float32).astype(np.float16)
                content = io.BytesIO()
                np.save(content, array)
                tar.addfile(tar_member(f"{key}.npy", content.tell()), io.BytesIO(content.getvalue()))
                write_atomic(root / "loose" / name / f"{key}.npy", content.getvalue())
                arrays[key.rpartition("-")[0]].append(array)
    for narrative, parts in arrays.items():
        np.save(root / "loose" / name / f"{narrative}.npy", np.stack(parts))
    features = Features(
        format=FORMAT,
        name=name,
        created_by="benchmark",
        model="random numbers",
        revision="0",
        dtype="float16",
        shape=shape,
        config={},
        sha256s={shard: file_sha256(root / "features" / name / shard) for shard in shards},
        of_shards=shards,
    )
    write_atomic(root / "features" / name / "features.json", canonical_json(features.to_json()))


def warm(root: Path) -> None:
    """Reads all files into the page cache, from the start. What a writer leaves there is in pieces as small as its
    writes, and slower to read than what reading brings in; our writers and our peers' differ in that."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while file.read(4 * MIB):
                    pass


def feature_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def keys_of(shard: Path) -> list[str]:
    with tarfile.open(shard, "r:") as tar:
        return [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]


def shards_of(root: Path) -> list[str]:
    return sorted(str(path) for path in (root / "train").glob("*.tar"))


# --- side by side

Read = Callable[[], int]  # reads all and says how much it was
Arms = dict[str, Callable[[], Read]]  # name -> opens, not timed, and returns what is timed; the first is ours


def cpu_s() -> float:
    """CPU seconds of this process and of its ended workers."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def by_turns(arms: Arms, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Wall and CPU seconds of each arm in each round, after one that is not counted; and how much each of them read."""
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    amounts = {}
    for number in range(rounds + 1):
        turn = list(arms.items())
        for name, make in turn if number % 2 else reversed(turn):
            read = make()
            gc.collect()
            start, cpu_start = time.perf_counter(), cpu_s()
            amounts[name] = read()
            if number:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(cpu_s() - cpu_start)
    assert len(set(amounts.values())) == 1, f"not the same content: {amounts}"
    return wall, cpu, next(iter(amounts.values()))


def ratio_of(slower: Iterable[float], faster: Iterable[float]) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(slower, faster, strict=True)]
    return {"ratio": round(statistics.median(ratios), 3), "spread": [round(min(ratios), 3), round(max(ratios), 3)]}


def compare(
    bench: str, arms: Arms, rounds: int, *, unit: str, bars: dict[str, float] | None = None, **facts: Any
) -> None:
    """One line a peer; `unit` names what the arms count: "mib" (they count bytes) or "clips".

    `cpu_ratio` is the ratio in CPU seconds: for one thread what the wall says on an idle machine.
    """
    wall, cpu, amount = by_turns(arms, rounds)
    amount_of_unit = amount / MIB if unit == "mib" else amount
    speed = {name: round(amount_of_unit / statistics.median(times), 1) for name, times in wall.items()}
    ours, *peers = arms
    for peer in peers:
        bar = {"bar": bars[peer]} if bars and peer in bars else {}
        ratio = ratio_of(wall[peer], wall[ours]) | {"cpu_ratio": ratio_of(cpu[peer], cpu[ours])["ratio"]}
        named = {f"{ours}_{unit}_per_s": speed[ours], f"peer_{unit}_per_s": speed[peer]}
        say(bench=bench, peer=peer, **ratio, **bar, **named, rounds=rounds, **facts)


def has(package: str, bench: str) -> bool:
    """Whether a peer is installed; where it is not, a line says so."""
    with suppress(ModuleNotFoundError):  # of the parent package
        if importlib.util.find_spec(package) is not None:
            return True
    say(bench=bench, peer=package, missing="not installed; `make bench-env` installs it, `make bench-dataset` uses it")
    return False


# --- 1. bytes as they are


def bench_undecoded(sets: Sets, rounds: int) -> None:
    import webdataset

    urls = shards_of(sets.large)

    def ours() -> Read:
        split = load_split("train", sets.large, unit="clip")
        return lambda: sum(len(step.read(suffix)) for step in split for suffix in SUFFIXES)

    def wds() -> Read:
        dataset = webdataset.WebDataset(urls, shardshuffle=False)
        return lambda: sum(len(sample[suffix]) for sample in dataset for suffix in SUFFIXES)

    def read_tars() -> int:
        num_bytes = 0
        for url in urls:
            with tarfile.open(url, "r:") as tar:
                for member in tar:
                    num_bytes += len(tar.extractfile(member).read())
        return num_bytes

    arms: Arms = {"cookgen": ours, "webdataset": wds, "tarfile": lambda: read_tars}
    compare("undecoded", arms, rounds, unit="mib", bars={"webdataset": 0.95, "tarfile": 0.9}, shards=len(urls))


# --- 2. eight frames a clip


def even(num_frames: int) -> list[int]:
    return [(2 * part + 1) * num_frames // (2 * NUM_FRAMES) for part in range(NUM_FRAMES)]


def pyav_frames(mp4: bytes, numbers: list[int], *, threads: int) -> Any:
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        frames = []
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                frames += [reformatter.reformat(frame, format="rgb24").to_ndarray()] * numbers.count(number)
            if number == numbers[-1]:
                return np.stack(frames)
    raise ValueError(f"{number + 1} frames; {numbers} are wanted")


def decord_frames(mp4: bytes, numbers: list[int], *, threads: int) -> Any:
    import decord

    return decord.VideoReader(io.BytesIO(mp4), num_threads=threads).get_batch(numbers).asnumpy()


def torchcodec_frames(mp4: bytes, numbers: list[int], *, threads: int, seek_mode: str) -> Any:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(mp4, num_ffmpeg_threads=threads, seek_mode=seek_mode, dimension_order="NHWC")
    return decoder.get_frames_at(numbers).data.numpy()


def bench_decode(sets: Sets, rounds: int) -> None:
    """The peers have the bytes in memory; ours reads them from the shard and checks their digest."""
    peers: dict[str, Callable[..., Any]] = {"pyav": pyav_frames, "decord2": decord_frames}
    if has("torchcodec", "decode"):
        import torch

        torch.set_num_threads(1)
        for seek_mode in ("exact", "approximate"):
            peers[f"torchcodec, {seek_mode}"] = partial(torchcodec_frames, seek_mode=seek_mode)
    split = load_split("train", sets.small, unit="clip")
    steps = list(split[:: max(1, len(split) // 48)])
    clips = [(step.mp4, even(step.num_frames)) for step in steps]

    truth = read_frames(*clips[0]).astype(int)
    for name, function in peers.items():  # colours may differ by rounding
        assert abs(function(*clips[0], threads=1) - truth).mean() < 1, f"{name}: other frames"

    def decode(function: Callable[..., Any]) -> int:
        return sum(len(function(mp4, numbers)) for mp4, numbers in clips) // NUM_FRAMES

    def ours() -> int:
        return sum(len(step.frames(num_frames=NUM_FRAMES)) for step in steps) // NUM_FRAMES

    cores = os.sched_getaffinity(0)
    for threads in (1, 0):
        os.sched_setaffinity(0, {min(cores)} if threads else cores)  # ours takes as many threads as it has cores
        reads = {name: partial(decode, partial(function, threads=threads)) for name, function in peers.items()}
        reads = {"cookgen": ours, "read_frames of bytes in memory": partial(decode, read_frames), **reads}
        compare(
            f"decode {NUM_FRAMES} frames",
            {name: partial(lambda read: read, read) for name, read in reads.items()},
            rounds,
            unit="clips",
            bars=dict.fromkeys(peers, 1.0),
            threads=threads or "as each likes",
            px=[steps[0].sample.clip.height, steps[0].sample.clip.width],
        )


# --- 3. workers


def decode_sample(sample: dict[str, Any]) -> Any:
    import torch

    num_frames = json.loads(sample["json"])["clip"]["num_frames"]
    return torch.from_numpy(read_frames(sample["mp4"], even(num_frames)))


def use_cores(num_workers: int, cores: set[int]) -> None:
    """Without workers one core, so that what decodes with as many threads as there are cores scales from one, too."""
    os.sched_setaffinity(0, cores if num_workers else {min(cores)})


def our_batches(root: Path, num_workers: int, cores: set[int]) -> Read:
    use_cores(num_workers, cores)
    split = load_split("train", root, unit="clip", frames=NUM_FRAMES)
    loader = split.torch(batch_size=BATCH_SIZE, num_workers=num_workers)

    def read() -> int:
        for _ in loader:
            pass
        return loader.counts.samples

    return read


def wds_loader(root: Path, num_workers: int, loader: Any) -> Any:
    """webdataset's frames in batches, through torch's DataLoader or one like it."""
    import webdataset

    dataset = webdataset.WebDataset(shards_of(root), shardshuffle=False).map(decode_sample)
    return loader(dataset, batch_size=BATCH_SIZE, num_workers=num_workers)


def wds_batches(root: Path, num_workers: int, cores: set[int]) -> Read:
    from torch.utils.data import DataLoader

    use_cores(num_workers, cores)
    loader = wds_loader(root, num_workers, DataLoader)
    return lambda: sum(len(batch) for batch in loader)


def bench_workers(sets: Sets, rounds: int) -> None:
    workers, cores = (0, 1, 2), os.sched_getaffinity(0)
    arms: Arms = {}
    for num in workers:
        arms[f"cookgen {num}"] = partial(our_batches, sets.small, num, cores)
        arms[f"webdataset {num}"] = partial(wds_batches, sets.small, num, cores)
    seconds, cpu, num_clips = by_turns(arms, rounds)
    for num in workers:
        ours, theirs = seconds[f"cookgen {num}"], seconds[f"webdataset {num}"]
        say(
            bench=f"batches with {NUM_FRAMES} frames a clip",
            peer="webdataset and torch's DataLoader",
            workers=num,
            **ratio_of(theirs, ours),
            cpu_ratio=ratio_of(cpu[f"webdataset {num}"], cpu[f"cookgen {num}"])["ratio"],
            cookgen_clips_per_s=round(num_clips / statistics.median(ours), 1),
            peer_clips_per_s=round(num_clips / statistics.median(theirs), 1),
        )
        if num:
            speed_up = [a / b for a, b in zip(seconds["cookgen 0"], ours, strict=True)]
            peer_speed_up = [a / b for a, b in zip(seconds["webdataset 0"], theirs, strict=True)]
            say(
                bench="speed-up by workers",
                peer="webdataset and torch's DataLoader",
                workers=num,
                **ratio_of(speed_up, peer_speed_up),
                bar=1.0,
                cookgen_speed_up=round(statistics.median(speed_up), 2),
                peer_speed_up=round(statistics.median(peer_speed_up), 2),
            )


# --- 4. cached features


def bench_features(sets: Sets, rounds: int) -> None:
    for shape in SHAPES:
        compare_features(sets.small, shape, 2 * rounds)


def num_bytes(arrays: Iterable[Any]) -> int:
    """As a training loop does: the last array is still held while the next is read."""
    total = 0
    for array in arrays:
        total += array.nbytes
    return total


def compare_features(root: Path, shape: tuple[int, ...], rounds: int) -> None:
    """The peers know beforehand which files they read, and where in them the numbers lie."""
    name, num_numbers = feature_name(shape), int(np.prod(shape))
    narratives = [(root / "loose" / name / f"{item.name}.npy", item.num_steps) for item in load_split("train", root)]
    clips = [path.with_stem(f"{path.stem}-{index:03d}") for path, num_steps in narratives for index in range(num_steps)]
    spans = []
    for shard in shards_of(root):
        sidecar = root / "features" / name / Path(shard).relative_to(root)
        with tarfile.open(sidecar, "r:") as tar:
            spans += [(sidecar, member.offset_data + member.size - 2 * num_numbers) for member in tar]

    def our_clips() -> Read:
        steps = list(load_split("train", root, unit="clip", features=(name,)))
        return lambda: num_bytes(step.features[name] for step in steps)

    def our_narratives() -> Read:
        split = load_split("train", root, features=(name,))
        return lambda: num_bytes(narrative.features[name] for narrative in split)

    def from_sidecar(span: tuple[Path, int]) -> Any:
        return np.fromfile(span[0], "<f2", num_numbers, offset=span[1]).reshape(shape)

    def from_file(path: Path, num_steps: int) -> Any:
        return np.fromfile(path, "<f2", num_steps * num_numbers, offset=128).reshape(num_steps, *shape)

    def from_sidecars() -> int:
        rest = iter(spans)
        return num_bytes(
            np.stack([from_sidecar(span) for span in itertools.islice(rest, num_steps)]) for _, num_steps in narratives
        )

    first = load_split("train", root, features=(name,))[0]
    assert np.array_equal(first.features[name], np.load(narratives[0][0])), "not the same numbers"
    arms: Arms = {
        "cookgen": our_clips,
        "np.load, a file a clip": lambda: lambda: num_bytes(np.load(path) for path in clips),
        "np.fromfile of the sidecars": lambda: lambda: num_bytes(from_sidecar(span) for span in spans),
    }
    bars = dict.fromkeys([*arms][1:], 0.9)
    compare("features of a clip", arms, rounds, unit="mib", bars=bars, shape=list(shape))
    arms = {
        "cookgen": our_narratives,
        "np.load, a file a narrative": lambda: lambda: num_bytes(np.load(path) for path, _ in narratives),
        "np.fromfile of the sidecars": lambda: from_sidecars,
        # Other bytes: those of a narrative lie together, without headers in between. A limit, not a bar.
        "np.fromfile, a file a narrative": lambda: lambda: num_bytes(from_file(*item) for item in narratives),
    }
    bars = dict.fromkeys([*arms][1:3], 0.9)
    compare("features of a narrative", arms, rounds, unit="mib", bars=bars, shape=list(shape))


# --- 5. resume


def bytes_read() -> int:
    """What this process and its workers have asked the system for, ended ones included."""
    own = psutil.Process()
    return sum(process.io_counters().read_chars for process in [own, *own.children(recursive=True)])


def bench_resume(sets: Sets, rounds: int) -> None:
    for num_workers in (0, 2):

        def open_loader(num_workers: int = num_workers) -> Any:
            split = load_split("train", sets.small, unit="clip", frames=NUM_FRAMES, shuffle=True)
            return split.torch(batch_size=BATCH_SIZE, num_workers=num_workers)

        loader = open_loader()
        stops = {int(len(loader) * part): part for part in (0.5, 0.99)}
        states = {}
        before = bytes_read()
        for num_batches, _ in enumerate(loader, 1):
            if num_batches in stops:
                states[num_batches] = loader.state_dict()
        epoch_mib = (bytes_read() - before) / MIB
        for num_batches, part in stops.items():
            seconds, mib = [], []
            for _ in range(rounds):
                loader = open_loader()
                before, start = bytes_read(), time.perf_counter()
                loader.load_state_dict(states[num_batches])
                batches = iter(loader)
                next(batches)
                seconds.append(time.perf_counter() - start)
                mib.append((bytes_read() - before) / MIB)
                batches.close()
            say(
                bench="resume",
                at=part,
                workers=num_workers,
                first_batch_s=round(statistics.median(seconds), 3),
                spread=[round(min(seconds), 3), round(max(seconds), 3)],
                bar_s=2.0,
                read_mib=round(statistics.median(mib), 2),
                epoch_read_mib=round(epoch_mib, 2),
                batches_in_epoch=len(loader),
                batch_size=BATCH_SIZE,
            )
    if has("torchdata", "resume"):
        from torchdata.stateful_dataloader import StatefulDataLoader

        loader = wds_loader(sets.small, 0, StatefulDataLoader)
        batches = iter(loader)
        for _ in range(len(load_split("train", sets.small, unit="clip")) // BATCH_SIZE // 2):
            next(batches)
        state = loader.state_dict()
        loader = wds_loader(sets.small, 0, StatefulDataLoader)
        start = time.perf_counter()
        loader.load_state_dict(state)
        next(iter(loader))
        first_batch_s = round(time.perf_counter() - start, 3)
        say(bench="resume", at=0.5, workers=0, peer="webdataset in StatefulDataLoader", first_batch_s=first_batch_s)


# --- 6. memory


def pss_mib() -> float:
    """Of this process and its workers, shared pages counted once."""
    own, total = psutil.Process(), 0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / MIB


def epochs_of_bytes(root: Path, epochs: int) -> Iterator[int]:
    split = load_split("train", root, unit="clip")
    for _ in range(epochs):
        for step in split:
            yield all(step.read(suffix) for suffix in SUFFIXES)


def epochs_of_arrays(root: Path, epochs: int) -> Iterator[int]:
    split = load_split("train", root, unit="clip")
    for _ in range(epochs):
        for step in split:
            yield len(step.frames(num_frames=NUM_FRAMES)) // NUM_FRAMES
            step.keyframe()


def epochs_of_batches(root: Path, epochs: int) -> Iterator[int]:
    split = load_split("train", root, unit="clip", frames=NUM_FRAMES, shuffle=True)
    loader = split.torch(batch_size=BATCH_SIZE, num_workers=2)
    for _ in range(epochs):
        for batch in loader:
            yield len(batch["key"])


def bench_memory(sets: Sets, rounds: int) -> None:
    """Over at least 4800 clips and six epochs; the first half, in which caches and allocators fill, does not count."""
    ways: tuple[tuple[str, Callable[[Path, int], Iterator[int]], Path], ...] = (
        ("bytes", epochs_of_bytes, sets.large),
        ("frames and keyframes", epochs_of_arrays, sets.small),
        (".torch, 2 workers", epochs_of_batches, sets.small),
    )
    for what, epochs_of, root in ways:
        num_in_epoch = load_split("train", root).num_clips
        epochs = max(6, -(-4800 // num_in_epoch))
        due, num_clips, samples = 0, 0, []
        for num in epochs_of(root, epochs):
            num_clips += num
            if num_clips >= due:
                due = num_clips + num_in_epoch // 16
                samples.append((num_clips, pss_mib()))
        assert num_clips == epochs * num_in_epoch
        clips, mib = np.array([sample for sample in samples if sample[0] > num_clips / 2]).T
        (slope, _), covariance = np.polyfit(clips / 1000, mib, 1, cov=True)
        say(
            bench=f"memory: {what}",
            slope_mib_per_1000_clips=round(float(slope), 2),
            standard_error=round(float(covariance[0, 0] ** 0.5), 2),
            peak_pss_mib=round(max(size for _, size in samples), 1),
            peak_of_first_half=round(max(size for num, size in samples if num <= num_clips / 2), 1),
            clips=num_clips,
            epochs=epochs,
        )


# --- 7. the same content in other formats


def tar_samples(path: str) -> Iterator[dict[str, Any]]:
    sample: dict[str, Any] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            sample[suffix] = tar.extractfile(member).read()
            if len(sample) == len(SUFFIXES):
                yield {"key": key, **sample}
                sample = {}


def folder_mib(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB, 1)


def litdata_arms(root: Path, out: Path) -> dict[bool, Callable[[], Read]]:
    from litdata import StreamingDataset, optimize

    start = time.perf_counter()
    optimize(tar_samples, shards_of(root), str(out), chunk_bytes="64MB", num_workers=1, mode="overwrite", verbose=False)
    say(bench="conversion", peer="litdata", s=round(time.perf_counter() - start, 2), mib=folder_mib(out))
    warm(out)

    def arm(shuffle: bool) -> Read:
        dataset = StreamingDataset(str(out), shuffle=shuffle)
        return lambda: sum(len(sample[suffix]) for sample in dataset for suffix in SUFFIXES)

    return {shuffle: partial(arm, shuffle) for shuffle in (False, True)}


def energon_arms(root: Path, out: Path) -> dict[bool, Callable[[], Read]]:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        get_val_dataset,
        stateless,
    )

    (out / "train").mkdir(parents=True)
    for url in shards_of(root):
        os.link(url, out / "train" / Path(url).name)
    tar_mib = folder_mib(out)
    command = [
        str(Path(sys.executable).with_name("energon")),
        "prepare",
        str(out),
        "--non-interactive",
        "--no-progress",
    ]
    command += ["--split-parts", "train:train/.*.tar", "--sample-type", "CrudeWebdataset", "--num-workers", "2"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = round(time.perf_counter() - start, 2)
    say(bench="conversion", peer="megatron-energon", s=seconds, mib=round(folder_mib(out) - tar_mib, 1), of="an index")

    @stateless
    def as_it_is(sample: Any) -> Any:
        return sample

    class Undecoded(DefaultTaskEncoder):
        cookers = (Cooker(as_it_is),)
        decoder = None

    def arm(shuffle: bool) -> Read:
        facts = {
            "split_part": "train",
            "worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0),
            "batch_size": None,
            "task_encoder": Undecoded(),
        }
        if shuffle:
            bounds = {"shuffle_buffer_size": 100, "max_samples_per_sequence": 100, "repeat": False}
            loader = get_loader(get_train_dataset(out, **facts, **bounds))
        else:
            loader = get_loader(get_val_dataset(out, **facts))
        return lambda: sum(len(sample[suffix]) for sample in loader for suffix in SUFFIXES)

    return {shuffle: partial(arm, shuffle) for shuffle in (False, True)}


def bench_formats(sets: Sets, rounds: int) -> None:
    """Shuffled: ours over all clips of the epoch, litdata over its chunks, energon within a buffer of 100 clips."""
    warnings.simplefilter("ignore")
    peers = {}
    with tempfile.TemporaryDirectory(dir=sets.large.parent) as folder:
        if has("litdata", "formats"):
            peers["litdata"] = litdata_arms(sets.large, Path(folder, "litdata"))
        if has("megatron.energon", "formats"):
            peers["megatron-energon"] = energon_arms(sets.large, Path(folder, "energon"))

        def ours(shuffle: bool, unit: Any) -> Read:
            split = load_split("train", sets.large, unit=unit, shuffle=shuffle)
            if unit == "clip":
                return lambda: sum(len(step.read(suffix)) for step in split for suffix in SUFFIXES)
            return lambda: sum(
                len(step.read(suffix)) for narrative in split for step in narrative.steps for suffix in SUFFIXES
            )

        for shuffle in (False, True):
            for unit in ("clip", "narrative"):
                arms: Arms = {"cookgen": partial(ours, shuffle, unit)}
                arms |= {name: arm[shuffle] for name, arm in peers.items()}
                if peers:
                    compare(
                        f"undecoded, {'shuffled' if shuffle else 'in order'}",
                        arms,
                        rounds,
                        unit="mib",
                        cookgen_unit=unit,
                    )


# --- all of it


@dataclass(frozen=True)
class Sets:
    large: Path  # for bytes
    small: Path  # for decoding, with features


BENCHES: dict[str, Callable[[Sets, int], None]] = {
    "undecoded": bench_undecoded,
    "decode": bench_decode,
    "workers": bench_workers,
    "features": bench_features,
    "resume": bench_resume,
    "memory": bench_memory,
    "formats": bench_formats,
}


def link_ffmpeg(folder: Path) -> None:
    """torchcodec wants FFmpeg under its plain names; PyAV's is there under others: the same FFmpeg for both."""
    import av

    for path in Path(av.__file__).parents[1].joinpath("av.libs").glob("*.so*"):
        plain = re.sub(r"^(lib(?:av|sw)[a-z]+)-[0-9a-f]+(\.so\.[0-9]+).*$", r"\1\2", path.name)
        for name in {path.name, plain}:
            (folder / name).symlink_to(path)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(name: str, large: str, small: str, rounds: str) -> None:
    """What the process of one measure runs."""
    BENCHES[name](Sets(Path(large), Path(small)), int(rounds))


def main(
    root: tyro.conf.Positional[Path],
    only: tuple[str, ...] = tuple(BENCHES),
    large_mib: int = 256,
    small_mib: int = 64,
    rounds: int = 7,
) -> int:
    """Measures the loader on copies of the shard set `root` and prints JSON lines; exits with 1 if a measure failed.

    Args:
        root: the set to take clips from, made by `make shards`.
        only: the measures wanted.
        large_mib: size of the set that is read undecoded.
        small_mib: size of the set that is decoded, a tenth of a second of CPU for about 1 MiB and round.
        rounds: how often each reader has its turn.
    """
    try:
        load_split("train", root)
    except CookgenError as error:
        sys.exit(f"error: {error}")
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    packages = "av decord2 torch torchcodec torchdata webdataset litdata megatron-energon numpy".split()
    say(
        commit=commit,
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
        machine=platform.machine(),
        python=platform.python_version(),
        versions={package: version_of(package) for package in packages},
        page_cache="warm",
    )
    is_good = True
    with tempfile.TemporaryDirectory(prefix="bench-dataset-") as folder:
        sets = Sets(Path(folder, "large"), Path(folder, "small"))
        for path, mib in ((sets.large, large_mib), (sets.small, small_mib)):
            make_bench_set(root, path, num_bytes=mib * MIB)
            split = load_split("train", path)
            say(
                set=path.name,
                narratives=len(split),
                clips=split.num_clips,
                shards=len(shards_of(path)),
                mib=folder_mib(path / "train"),
            )
        for shape in SHAPES if "features" in only else ():
            add_features(sets.small, shape)
        warm(Path(folder))
        Path(folder, "ffmpeg").mkdir()
        link_ffmpeg(Path(folder, "ffmpeg"))
        # Read when the measures' processes start.
        os.environ["LD_LIBRARY_PATH"] = f"{folder}/ffmpeg:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        for name in only:
            command = [sys.executable, "-c", "import sys, dataset; dataset.measure(*sys.argv[1:])"]
            run = subprocess.run(
                [*command, name, *map(str, (sets.large, sets.small, rounds))], cwd=Path(__file__).parent
            )
            if run.returncode:
                say(bench=name, failed=f"exit status {run.returncode}")
                is_good = False
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
