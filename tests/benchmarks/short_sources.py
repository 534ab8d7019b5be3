"""What a short source costs: `python -m tests.benchmarks.short_sources` looks at half-second windows in bundles, and each as a job of its own.

CPU seconds of this process, the fork server and its children, without Ray, interleaved: wall time is what the machine has left.
"""

import argparse
import multiprocessing.forkserver
import resource
import tempfile
import time
from pathlib import Path

import psutil

from data_pipeline import segments
from data_pipeline.analyze import analyze
from data_pipeline.worklist import WorkItem
from infra import assets
from infra.runtime import quieten
from tests.data_pipeline.soak import cut_windows

Row = tuple[str, str]
_ROUNDS = 5


def short_sources(windows: int = 500) -> list[Row]:
    """CPU a source in bundles and alone, and that they give the same parts."""
    quieten()
    folder = Path(tempfile.mkdtemp(prefix="lato_short_"))
    (folder / "sources").mkdir()
    items = cut_windows(folder / "sources", windows)
    _look(items[:1], folder / "start", 16)  # models and fork server are there when the clock runs
    spent: dict[str, list[float]] = {"bundled": [], "alone": []}
    step = max(1, len(items) // _ROUNDS)
    for start in range(0, len(items), step):
        for name, bundles in (("bundled", 16), ("alone", 10**9)):
            spent[name].append(_look(items[start : start + step], folder / name, bundles))
    same = all((folder / "alone/parts" / path.name).read_bytes() == path.read_bytes() for path in (folder / "bundled/parts").iterdir())
    bundled, alone = (1000 * sum(spent[name]) / len(items) for name in ("bundled", "alone"))
    return [
        (f"{len(items)} half-second windows in bundles", f"{bundled:.0f} ms CPU a source, {1000 / bundled:.1f} sources a CPU second"),
        (
            "each as a job of its own",
            f"{alone:.0f} ms CPU a source ({alone / bundled:.2f} x), {'the same bytes' if same else 'OTHER BYTES'}",
        ),
    ]


def _look(items: list[WorkItem], work: Path, bundles: int) -> float:
    segments._BUNDLES_A_WORKER = bundles
    before = cpu()
    analyze(items, segments.AnalyzeConfig(workers=0), assets.folder(), str(work))
    time.sleep(0.2)  # the last child's end is counted when its server has seen it
    return cpu() - before


def cpu() -> float:
    """Seconds of this process, of the fork server and of its children, those that ended too."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server:
        process = psutil.Process(server)
        spent = process.cpu_times()
        total += spent.user + spent.system + spent.children_user + spent.children_system
        total += sum(child.cpu_times().user + child.cpu_times().system for child in process.children(recursive=True))
    return total


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=500)
    for name, value in short_sources(parser.parse_args().windows):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
