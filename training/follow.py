"""What the driver does while ranks train: reads the files they write, prints a line now and then, and logs to MLflow.

The ranks write only files (metrics, pictures, checkpoints, exports) and never wait; whatever was not read when a driver was killed is read by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.addresses import join
from infra.backoff import wait
from infra.console import duration, say
from infra.storage import exists, list_folders, read_bytes, sha256_bytes
from infra.tracking import Run
from training.checkpoint import MARKER
from training.export import CARD

_EVERY = 1.0
"""Seconds between two looks at the folder."""
_LAST_LOOKS = 4
"""Most tries of the last look, which wait longer each time."""
_PRINT_EVERY = 10.0
_NOT_METRICS = ("time", "step", "steps", "seconds_left")


class Follower(threading.Thread):
    """Follows one stage's run folder from `start` to `finish`; it waits for nobody but the disk.

    - `metrics.jsonl`: a line a step, from its beginning: what an earlier driver had logged is left out by the run.
    - `pictures/<name>-<step>.png`: images by name and step.
    - `checkpoints/step-*/COMPLETE`: a JSON with URI and hashes.
    - `export`, `export-best`, `export-<name>`: registered as versions of the model `lato-<stage>`, with the alias `last`, `best` or the name; `best` too is
      `export` where no earlier checkpoint was better.

    Args:
        stage: The stage's name.
        folder: The run's folder.
        run: The MLflow run.
        checkpoints: URI of the checkpoints' folder, if not below the run's.
    """

    def __init__(self, stage: str, folder: Path, run: Run, checkpoints: str | None = None) -> None:
        super().__init__(daemon=True, name=f"follow-{stage}")
        self._stage, self._folder, self._run = stage, folder, run
        self._checkpoints = checkpoints or str(folder / "checkpoints")
        self._over = threading.Event()
        metrics = folder / "metrics.jsonl"
        self._position, self._known = 0, metrics.stat().st_size if metrics.exists() else 0
        self._printed = 0.0
        self._pictures: set[str] = set()
        self._exports: dict[str, float] = {}
        self._seen: set[str] = set()

    def run(self) -> None:
        """The thread's work."""
        self._run.tags({"stage": self._stage, "folder": str(self._folder)})
        while not self._over.wait(_EVERY):
            self._look(settled=False)

    def finish(self, ended_well: bool = True) -> None:
        """Takes what is left and ends; an export that was just being written is registered only if the training ended well. Then the last look is
        repeated where it failed, as no other follows it; of a training that goes on the next driver takes what was missed.
        """
        self._over.set()
        self.join()
        for failed in range(1, _LAST_LOOKS if ended_well else 1):
            if self._look(settled=ended_well):
                return
            wait(failed)
        self._look(settled=ended_well)

    def register_missed(self) -> None:
        """Registers exports of a training that has ended which the driver that ended it could not; for a follower that was not started."""
        self._try(lambda: self._read_exports(settled=True))

    def _look(self, settled: bool) -> bool:
        """Whether all could be read; what could not be keeps nothing else from being taken."""
        parts = (self._read_metrics, self._read_pictures, self._read_checkpoints, lambda: self._read_exports(settled))
        taken = [self._try(part) for part in parts]
        return all(taken)

    def _try(self, part: Callable[[], None]) -> bool:
        try:
            part()
        except Exception as error:  # a full disk, a network file system that hiccups, whatever a store's library raises: the next look takes what this one missed
            logging.getLogger("lato.tracking").warning("%s could not be read: %s", self._folder, error)
            return False
        return True

    def _read_metrics(self) -> None:
        path = self._folder / "metrics.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._position += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:  # a rank was killed while it wrote, and the next one went on behind it
                    logging.getLogger("lato.tracking").warning("%s: a torn line was passed over: %.80r", path, line)
                    continue
                self._take(entry, is_new=self._position > self._known)

    def _take(self, line: dict[str, Any], is_new: bool) -> None:
        step = line["step"]
        if "notes" in line:
            if is_new:
                say("\n".join(f"  {self._stage}: {note}" for note in line["notes"]))
            self._run.text("\n".join(line["notes"]) + "\n", "notes.txt", once=("notes", step))
            return
        for alarm in line.get("alarms", []):
            name = hashlib.sha256(alarm.encode()).hexdigest()[:8]  # a step may have several lines
            if is_new:
                say(f"  {self._stage}: ALARM at step {step}: {alarm}")
            self._run.text(f"{alarm}\n", f"alarms/step-{step:06d}-{name}.txt", once=(f"alarm {step} {name}", 1))
        numbers = {name: value for name, value in line.items() if name not in _NOT_METRICS and isinstance(value, int | float)}
        self._run.metrics(numbers, step, line.get("time"))
        if is_new and ("held_out" in line or time.monotonic() - self._printed > _PRINT_EVERY):
            self._printed = time.monotonic()
            parts = [f"{name} {line[name]:.4f}" for name in ("loss", "held_out") if name in line]
            left = f"{line['steps_per_second']:.2f} steps/s, {duration(line['seconds_left'])} left" if line.get("seconds_left") else ""
            say(f"  {self._stage}: step {step}  " + "  ".join(filter(None, [*parts, left])))

    def _read_pictures(self) -> None:
        found = []
        for path in (self._folder / "pictures").glob("*.png"):
            named = re.fullmatch(r"(.+)-(\d+)", path.stem)
            if named and path.name not in self._pictures:
                found.append((named[1], int(named[2]), path))
        for name, step, path in sorted(found):
            self._run.picture(path, name, step)
            self._pictures.add(path.name)

    def _read_checkpoints(self) -> None:
        for folder in list_folders(self._checkpoints):
            name, marker = folder.rsplit("/", 1)[-1], join(folder, MARKER)
            if name in self._seen or not exists(marker):
                continue
            try:
                data = read_bytes(marker)
            except FileNotFoundError:  # retention took it in this moment
                continue
            said = json.loads(data)
            self._seen.add(name)
            about = {"uri": folder, "sha256": sha256_bytes(data), **said}
            self._run.text(json.dumps(about, indent=1), f"checkpoints/{name}.json", once=("checkpoint", said["step"]))

    def _read_exports(self, settled: bool) -> None:
        """Registers the exports that lie as they lay a look ago."""
        for folder in sorted(path for path in self._folder.glob("export*") if (path / CARD).is_file()):
            try:
                written = max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=0.0)
            except FileNotFoundError:  # it is being replaced
                continue
            before, self._exports[folder.name] = self._exports.get(folder.name), written
            if not written or not (settled or before == written):
                continue
            card = json.loads((folder / CARD).read_text())
            tags = {name: str(card[name]) for name in ("step", "held_out", "weights", "checkpoint") if card[name] is not None}
            self._run.model(f"lato-{self._stage}", str(folder), _alias(folder.name), tags, once=(f"export {folder.name}", written))
            is_best = card["held_out"] is not None and not (self._folder / "export-best").exists()  # else it lies there
            if settled and folder.name == "export" and is_best:
                self._run.model(f"lato-{self._stage}", str(folder), "best", tags, once=("export export-best", written))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file with numbers; of a step that was made twice (after an interruption) the later counts."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # torn by a kill; told when it was followed
            entry = json.loads(line)
            if "loss" in entry or "held_out" in entry:
                by_step[entry["step"]] = entry
    return [by_step[step] for step in sorted(by_step)]


def _alias(folder: str) -> str:
    name = folder.removeprefix("export").lstrip("-") or "last"
    return f"step-{name}" if name.isdigit() else re.sub(r"[^\w-]", "_", name)
