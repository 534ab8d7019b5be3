"""The engine: DeepSpeed ZeRO around a stage. It knows no Ray and no MLflow: it runs wherever the five variables of a process group are set, and writes files.

A step is: read, forward, vote (loss finite), backward, vote (gradients finite), optimizer, average, codebook. A failed vote stops all ranks before weights,
codebook, average, schedule or counter change. Files of a run: `metrics.jsonl`, `pictures/`, `checkpoints/`, `ranks/` (heartbeats), `export/`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import UserError
from infra.storage import commit
from training import checkpoint
from training.config import EngineConfig
from training.ema import Ema
from training.guards import Alarms, GradientWatch, Heartbeat, NotFinite, RankLost, slow_ranks, stop_unless_finite
from training.lines import line_writer
from training.loader import Loader
from training.meter import Meter, be_deterministic, seed_everything
from training.mixture import Sample
from training.requests import SAMPLE, SAVE, STOP, Preempted, Requests, listen
from training.restore import load
from training.resume_rules import start_weights
from training.stage import Stage, device_of, to_device
from training.zero import HeldOutTrace, initialise, start_process_group


def run(
    stage: Stage, config: EngineConfig, folder: Path, checkpoints: str | None = None, preempted: Callable[[], bool] = lambda: False
) -> None:
    """Trains a stage from its newest checkpoint to its end; called on every rank of a process group whose variables are set.

    Args:
        stage: What is trained.
        config: How.
        folder: Of the run, seen by all ranks.
        checkpoints: URI of the checkpoints' folder, if not below the run's (an object store).
        preempted: Whether this rank's machine is about to be taken away; the ranks then save once.

    Raises:
        NotFinite: On all ranks.
        Preempted: On all ranks, after a checkpoint was written.
        RankLost: Another rank ended or hangs; names it.
        UserError: The last checkpoint could not be written.
        ValueError: The global batch does not divide over ranks and accumulation.
    """
    start_process_group(config.timeout_minutes)
    if config.deterministic:
        be_deterministic()
    seed_everything(config.seed + dist.get_rank())
    heart = Heartbeat(folder / "ranks", dist.get_rank(), dist.get_world_size())
    training = _Training(stage, config, folder, checkpoints or str(folder / "checkpoints"), heart)
    try:
        with listen(folder, config.save_minutes, preempted) as requests:
            training.go(requests)
        dist.barrier()
    except (NotFinite, Preempted):
        raise
    except RuntimeError as error:  # what torch raises where a collective is given up
        if any(sign in str(error) for sign in ("Timed out", "timed out", "closed by peer", "Connection reset", "Broken pipe", "NCCL")):
            raise RankLost(f"training stopped in a collective: {heart.missing()}") from error
        raise


class _Training:
    """One run on one rank."""

    def __init__(self, stage: Stage, config: EngineConfig, folder: Path, checkpoints: str, heart: Heartbeat) -> None:
        self._stage, self._config, self._folder, self._heart = stage, config, folder, heart
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._report = line_writer(folder / "metrics.jsonl") if self._rank == 0 else _ignore
        self._engine = initialise(stage.build(), stage.weights(), config)
        self._held_out_trace = HeldOutTrace(self._engine)
        self._watch = GradientWatch(self._engine.module)
        self._ema = Ema(self._engine, config.ema) if config.ema else None
        self._meter = Meter()
        self._alarms = Alarms(stage.floors, config.warmup + 50)
        self._checkpoints = checkpoint.Checkpoints(checkpoints, config.keep)
        self._micro = config.global_batch // (self._world * config.accumulation)
        self._step = self._resume(checkpoints)

    def go(self, requests: Requests) -> None:
        """To the end, or to where it is asked to stop."""
        config = self._config
        if self._stage.notes:
            self._report({"step": self._step, "notes": self._stage.notes})
        if self._step == 0 or self._step >= config.steps:  # a run that is over may have been measured in a folder that is lost
            self._report({"step": self._step, **self._validate()})
        loader = Loader(self._stage.read, self.plan, self._step, config.steps, config.prefetch)
        started, first = time.monotonic(), self._step
        with contextlib.closing(loader):
            for parts in loader:
                try:
                    metrics, alarms = self._train_step(parts, loader.waited)
                except NotFinite:
                    self._finish()  # what was being written is of a good step
                    raise
                self._step += 1
                done = self._step == config.steps
                asked = requests.poll(*self._checkpoints.state())
                alarms += filter(None, [self._checkpoints.settle(asked.writing, asked.failed)])
                evaluate = done or self._step % config.eval_every == 0
                if evaluate:
                    metrics |= self._validate()
                if done or asked.sample or (config.picture_every and self._step % config.picture_every == 0):
                    self._draw()
                if evaluate or alarms or self._step % config.log_every == 0:
                    alarms += slow_ranks(self._meter.own_seconds) if self._world > 1 else []
                    rate = (self._step - first) / (time.monotonic() - started)
                    ahead = {"steps": config.steps, "steps_per_second": rate, "seconds_left": (config.steps - self._step) / rate}
                    told: dict[str, Any] = {"alarms": alarms} if alarms else {}
                    self._report({"step": self._step, **ahead, **metrics, **self._meter.read(self._world), **told})
                if done or asked.stop or asked.save or self._step % config.checkpoint_every == 0:
                    self._save(metrics.get("held_out"))
                    self._answer(requests, asked.save, asked.sample)
                elif asked.sample:
                    self._answer(requests, False, True)
                if asked.stop and not done:
                    self._finish(must=True)
                    if self._rank == 0:
                        requests.answered(STOP)
                    raise Preempted(f"asked to end after step {self._step}: saved, and the same command goes on from there")
        self._finish(must=True)
        if self._rank == 0:
            requests.answered(STOP)  # one that came with the last step is met, too

    def plan(self, step: int) -> list[list[Sample]]:
        """This rank's micro-batches of a step: the same global batch for any number of ranks, dealt by length so that long samples meet long ones."""
        batch = self._stage.data.batch(step, self._config.global_batch)
        batch.sort(key=self._stage.length)  # stable: samples of one length stay in order
        return [batch[(part * self._world + self._rank) * self._micro :][: self._micro] for part in range(self._config.accumulation)]

    def _train_step(self, parts: list[tuple[list[Sample], Any]], waited: float) -> tuple[dict[str, float], list[str]]:
        """One optimizer step of these micro-batches (samples, batch); returns what is logged of it, and what is alarming in that.

        Args:
            parts: Micro-batches, each of its samples and what was read of them.
            waited: Seconds that the step waited for them.
        """
        engine, meter = self._engine, self._meter
        engine.train()
        self._heart.beat(self._step, "step")
        losses: list[Tensor] = []
        flags: list[Tensor] = []
        shown: dict[str, list[Tensor]] = {}
        for samples, batch in parts:
            with meter.phase("forward"), meter.count_arithmetic():
                result = self._stage.loss(engine, to_device(batch, engine.device))
                loss = result.per_sample.float().mean()
            stop_unless_finite([torch.isfinite(loss.detach())], "loss", self._step, [samples])
            with meter.phase("backward"), meter.count_arithmetic(backward=True):
                engine.backward(loss)
                flags.append(self._watch.taken())
            if len(flags) == len(parts):
                stop_unless_finite(flags, "gradient", self._step, [own for own, _ in parts])
            with meter.phase("optimizer"):
                engine.step()
            losses.append(result.per_sample.detach().float())
            for name, value in result.shown.items():
                shown.setdefault(name, []).append(value)
            meter.add(len(samples), result.tokens)
        with meter.phase("optimizer"):
            if self._ema is not None:
                self._ema.update(engine, self._step + 1)
            changed = self._stage.after_step(engine.module, self._step + 1, self._config.steps)
        meter.step(waited)
        metrics = self._mean_losses(torch.cat(losses), [sample.source for samples, _ in parts for sample in samples])
        metrics |= self._mean_shown(shown) | changed
        metrics["lr"] = float(engine.get_lr()[0])
        norm = engine.get_global_grad_norm()
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        return metrics, self._alarms.look(self._step + 1, metrics)

    def _mean_losses(self, losses: Tensor, sources: list[int]) -> dict[str, float]:
        """Means over the global batch, in all and by source; one all-reduce, equal on all ranks."""
        names = self._stage.sources
        index = torch.tensor(sources, device=losses.device)
        sums = torch.zeros(2, len(names), device=losses.device, dtype=torch.float64)
        sums[0].index_add_(0, index, losses.double())
        sums[1].index_add_(0, index, torch.ones_like(losses, dtype=torch.float64))
        dist.all_reduce(sums)
        totals, counts = sums.tolist()
        metrics = {"loss": sum(totals) / sum(counts)}
        if len(names) > 1:
            metrics |= {f"loss/{name}": total / count for name, total, count in zip(names, totals, counts, strict=True) if count}
        return metrics

    def _mean_shown(self, shown: dict[str, list[Tensor]]) -> dict[str, float]:
        """Means of what a stage shows, over micro-batches and ranks: all are of one size."""
        if not shown:
            return {}
        means = torch.stack([torch.stack(values).double().mean() for values in shown.values()])
        dist.all_reduce(means)
        return dict(zip(shown, (means / self._world).tolist(), strict=True))

    def _averaged(self) -> Any:
        return self._ema.in_place(self._engine) if self._ema is not None else contextlib.nullcontext()

    def _validate(self) -> dict[str, float]:
        """Held-out numbers of what would be exported. On all ranks: at ZeRO-3 a forward pass is a collective."""
        self._heart.beat(self._step, "validation")
        with self._averaged(), self._held_out_trace(), _as_in_use(self._engine.module):
            return self._stage.validate(self._engine.module)

    def _draw(self) -> None:
        import cv2

        self._heart.beat(self._step, "pictures")
        with self._averaged(), self._held_out_trace(), _as_in_use(self._engine.module):
            pictures = self._stage.pictures(self._engine.module)
        if self._rank == 0:
            for name, picture in pictures.items():
                png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
                try:
                    commit(str(self._folder / "pictures" / f"{name}-{self._step:06d}.png"), png)
                except (UserError, OSError) as error:  # a full disk, a file system that hiccups: told, and training goes on
                    self._tell(str(error))

    def _save(self, held_out: float | None) -> None:
        self._heart.beat(self._step, "checkpoint")
        self._tell(self._checkpoints.finish())
        self._checkpoints.save(self._step, self._engine, self._ema, held_out)

    def _finish(self, must: bool = False) -> None:
        """Commits what is being written; the last checkpoint must be, or the run has not ended."""
        alarm = self._checkpoints.finish()
        self._tell(alarm)
        if alarm and must:
            raise UserError(f"{alarm}. Make room, or mend the store; the same command goes on from there.")

    def _tell(self, alarm: str | None) -> None:
        if alarm:
            self._report({"step": self._step, "alarms": [alarm]})

    def _answer(self, requests: Requests, saved: bool, sampled: bool) -> None:
        if self._rank == 0:
            for name, met in ((SAVE, saved), (SAMPLE, sampled)):
                if met:
                    requests.answered(name)

    def _resume(self, checkpoints: str) -> int:
        chosen: list[Any] = [None, None]
        if self._rank == 0:
            checkpoint.sweep(checkpoints)
            own = checkpoint.newest(checkpoints)
            torn = checkpoint.drop_torn(checkpoints, own)
            if torn and own:
                where = own.rsplit("/", 1)[-1]
                self._report(
                    {"step": 0, "alarms": [f"{', '.join(torn)}: files of it are missing or changed; training goes on from {where}"]}
                )
            chosen = [own, None if own else start_weights(self._folder)]
        dist.broadcast_object_list(chosen, 0)
        own, fork = chosen
        if fork:
            load(fork, self._engine, self._ema, weights_only=True)
        return int(load(own, self._engine, self._ema)["step"]) if own else 0


@contextlib.contextmanager
def _as_in_use(module: nn.Module) -> Any:
    """No gradient, no dropout, and random states as they were afterwards."""
    devices = [device_of(module)] if torch.cuda.is_available() else []
    module.eval()
    with torch.no_grad(), torch.random.fork_rng(devices):
        yield
    module.train()


def _ignore(values: Mapping[str, Any]) -> None:
    """Other ranks report nothing."""
