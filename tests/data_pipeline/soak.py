"""Many sources and a victim every minute: `python -m tests.data_pipeline.soak --share 1`.

8,500 windows of half a second, cut from all clips and encoded anew (each tied to its clip by `group`), 1,000 drawn pictures of 200 people, 500 bad inputs;
`--share` takes that part of each. Something is killed every minute until the build ends; then its bytes are compared with those of an undisturbed one.
"""

import argparse
import functools
import json
import multiprocessing
import os
import random
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av

from data_pipeline.worklist import WorkItem
from infra import assets
from infra.storage import list_files, sha256_file
from tests.data_pipeline.chaos import end, kill, start
from tests.data_pipeline.test_crashes import files_of

CLIPS = ("franck", "single_face", "carphone", "face_noface", "noface_face", "no_face")
WINDOWS, PEOPLE, BAD = 8500, 200, 500
VICTIMS = ("driver", "worker", "decoder")


def cut_windows(folder: Path, count: int) -> list[WorkItem]:
    """Half-second windows, drawn by a seed from all clips by their length, cut by as many processes as there are CPUs."""
    drawn = random.Random(0)
    lengths = {name: _count(str(assets.path(name))) for name in CLIPS}
    names = drawn.choices(list(lengths), list(lengths.values()), k=count)
    jobs = [(str(folder / f"w{number:05d}.mp4"), name, drawn.random(), drawn.randint(18, 34)) for number, name in enumerate(names)]
    jobs.sort(key=lambda job: job[1])  # so that a process holds one clip at a time
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(_cut, jobs, chunksize=max(1, count // 20))
    return [WorkItem(source_id=Path(p).stem, uri=p, kind="video", licence="test", group=name) for p, name, _, _ in sorted(jobs)]


def _count(path: str) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.demux(container.streams.video[0]))


@functools.lru_cache(maxsize=1)
def _read(name: str) -> tuple[list[av.VideoFrame], Fraction]:
    with av.open(str(assets.path(name))) as container:
        stream = container.streams.video[0]
        small = [frame.reformat(width=320, height=240, format="yuv420p") for frame in container.decode(stream)]
        return small, Fraction(round(float(stream.average_rate or 25)))


def _cut(path: str, clip: str, where: float, quality: int) -> None:
    pictures, rate = _read(clip)
    length = max(2, int(rate / 2))
    begin = int(where * max(1, len(pictures) - length))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(quality), "preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number, frame in enumerate(pictures[begin : begin + length]):
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, av.video.frame.PictureType.NONE
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    tell_apart(path)


def tell_apart(path: str) -> None:
    """Ends an MP4 or MOV with a box that readers pass over and that holds its name: of files with the same content a build uses one."""
    name = path.rsplit("/", 1)[-1].encode()
    with open(path, "ab") as file:
        file.write((8 + len(name)).to_bytes(4, "big") + b"free" + name)


def bad_inputs(folder: Path, count: int) -> list[WorkItem]:
    """Empty files, texts, halves of videos, missing files."""
    whole = Path(assets.path("single_face")).read_bytes()
    contents = [b"", b"text", whole[: len(whole) // 3], whole[len(whole) // 2 :], None]
    items = []
    for number in range(count):
        path = folder / f"bad{number:04d}.mp4"
        content = contents[number % len(contents)]
        if content is not None:
            path.write_bytes(content + (str(number).encode() if content else b""))
        items.append(WorkItem(source_id=f"bad{number:04d}", uri=str(path), kind="video", licence="test"))
    return items


def disturbed(work: Path, models: Path, items: Path, people: int, every: float) -> tuple[int, int]:
    """Builds until it is done, one victim every so many seconds; returns runs and kills."""
    drawn, runs, kills = random.Random(1), 0, 0
    while True:
        runs += 1
        child = start(work, models, items, 1, people)
        since = time.monotonic()
        while child.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - since > every:
                kills += kill(drawn.choice(VICTIMS), child, work, drawn.uniform(0, 1))
                since = time.monotonic()
        end(child, work)
        if child.returncode == 0:
            return runs, kills
        assert runs <= kills + 3, f"runs fail that nobody killed: see {work}.log"


def main() -> None:
    """The soak; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--every", type=float, default=60.0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lato_soak_"))
    (folder / "sources").mkdir()
    people = max(5, round(PEOPLE * given.share))
    sources = cut_windows(folder / "sources", round(WINDOWS * given.share)) + bad_inputs(folder / "sources", round(BAD * given.share))
    items = folder / "items.json"
    items.write_text(json.dumps([item.model_dump() for item in sources]))
    began = time.monotonic()
    left_alone = start(folder / "calm", assets.folder(), items, 1, people)  # side by side: each has one worker
    try:
        runs, kills = disturbed(folder / "killed", assets.folder(), items, people, given.every)
        middle = time.monotonic()
        assert left_alone.wait() == 0, (folder / "calm.log").read_text()[-2000:]
        ended = time.monotonic()
    finally:
        end(left_alone, folder / "calm")
    calm, killed = (files_of(folder / name / "versions" / "v1") for name in ("calm", "killed"))
    ledger = (folder / "calm/ledger.jsonl").read_bytes()
    assert calm == killed, sorted(name for name in calm if calm[name] != killed.get(name))
    assert ledger == (folder / "killed/ledger.jsonl").read_bytes()
    assert len(ledger.splitlines()) == len(sources) + people
    shards = [sha256_file(uri)[:12] for uri in list_files(str(folder / "killed/versions/v1/shards"))]
    counts = json.loads((folder / "killed/versions/v1/index.json").read_text())["samples"]
    print("| sources | people | samples | kills | runs | disturbed | until both were done | bytes |\n|---|---|---|---|---|---|---|---|")
    took = f"{middle - began:.0f} s | {ended - began:.0f} s"
    print(f"| {len(sources)} | {people} | {counts} | {kills} | {runs} | {took} | identical ({len(shards)} shards, first {shards[0]}) |")


if __name__ == "__main__":
    main()
