"""What a run will take before it starts: memory on each GPU by ZeRO stage, operations, hours, sizes on disk; and, where it cannot fit, the nearest that does.

Of every parameter that is trained: its weight, its gradient (both in the precision of the run), an fp32 master and two fp32 moments, an fp32 average where
there is one. ZeRO 1 shares out masters and moments, 2 gradients too, 3 weights too; without ZeRO fp32 weights are the masters. What is frozen has weights
only. Activations are measured on the meta device (`training.meta`), not calculated. docs/benchmarks_training.md compares all this with real runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from training import meta
from training.config import EngineConfig
from training.gpus import GPUS, Gpu
from training.presets import StageName
from training.stages.predictor import AdapterConfig
from training.zero import BUCKET, reduce_bucket

LIVE = 1_000_000_000
"""Elements of weights that ZeRO-3 keeps gathered (`stage3_max_live_parameters`), and takes a step on at once (`sub_group_size`)."""
PREFETCH = 50_000_000
"""Elements that it gathers ahead (`stage3_prefetch_bucket_size`); as they come they are there twice, in one flat buffer and as weights."""
CONTEXT_GB = 2.0
"""Of a GPU, for CUDA's and NCCL's own state and libraries' workspaces: assumed, not measured here."""
FRAGMENTED = 0.06
"""Share of a GPU that the allocator cannot use: assumed, not measured here."""
GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """What memory depends on of a model."""

    total: int
    """Parameters."""
    trained: int
    """Those that are trained."""
    buffers: int
    """Bytes."""
    largest: int
    """Elements of the largest parameter."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by what they hold."""

    weights: float
    optimizer: float
    """Masters and moments."""
    average: float
    """Of the weights (EMA)."""
    buffers: float
    standing: float
    """What ZeRO-3 holds from its start to its end: this rank's gradients, and the buffer that gradients are reduced in."""
    gradients: float
    """That are kept for the step, where they do not stand."""
    waiting: float
    """Of them and of what is not shared out yet, that are there while a later micro-batch is computed."""
    activations: float
    """Their peak, with what operators need for a moment."""
    gathered: float
    """Weights that ZeRO-3 holds whole for a while and the flat buffers they come and gradients go in; before ZeRO-3 the buffer that gradients are reduced in."""
    step: float
    """What the optimizer needs for a moment: fp32 copies of gradients and Adam's own."""
    host: float
    """In the machine's memory while training: what is offloaded."""
    host_at_start: float
    """In the machine's memory while a pretrained model is filled: its weights, or at ZeRO-3 this rank's partitions, and one tensor as it is read."""

    @property
    def resting(self) -> float:
        """Between two steps."""
        return self.weights + self.optimizer + self.average + self.buffers + self.standing

    @property
    def peak(self) -> float:
        """The most: in the backward pass, or in the optimizer's step."""
        return self.resting + max(self.waiting + self.activations + self.gathered, self.gradients + self.step)


def memory_of(sizes: Sizes, engine: EngineConfig, ranks: int, activations: float, bucket: int = BUCKET) -> Memory:
    """Memory of one rank.

    Args:
        sizes: Of the model.
        engine: ZeRO stage, precision, offload, average, accumulation.
        ranks: N.
        activations: Peak bytes of a forward and backward pass beside weights (`Plan.activations`).
        bucket: Most elements of the buffer that gradients are reduced in.
    """
    zero, trained, total = engine.zero_stage, sizes.trained, sizes.total
    width = 2 if engine.precision == "bf16" else 4
    share = 1 / ranks if zero else 1.0
    masters = 4 * trained if zero or width == 2 else 0
    optimizer = (masters + 8 * trained) * share
    average = 4 * trained * share if engine.ema else 0.0
    weights = width * total * (share if zero == 3 else 1.0)
    gradients = width * trained * share
    waiting = 0.0
    if engine.accumulation > 1:  # ZeRO 1 keeps them whole to the last micro-batch
        waiting = width * trained * (share if zero >= 2 else 1.0)
    reduced = width * reduce_bucket(trained, bucket) if zero else 0.0
    gathered, standing = reduced, 0.0
    if zero == 3:
        gathered = width * (min(LIVE, total) + (min(PREFETCH, total) if ranks > 1 else 0))
        if trained > bucket:  # reduced more than once in a backward pass, through a copy, while activations are there
            gathered += reduced
        standing, gradients, waiting = gradients + reduced, 0.0, 0.0
    part = min(trained * share, LIVE) if zero else sizes.largest
    step = (4 * part if masters else 0) + 8 * part
    host = 0.0
    if engine.offload != "none":
        host = optimizer + average + 4 * trained * share
        optimizer = average = step = 0.0
        if zero >= 2:  # each share goes to the host as soon as it is whole
            gradients = waiting = 0.0
        if zero == 3:
            standing = reduced
    if engine.offload == "all":
        host, weights = host + weights, 0.0
    start = width * total * (share if zero == 3 else 1.0) + 4 * sizes.largest  # filled tensor by tensor from mapped files
    return Memory(weights, optimizer, average, sizes.buffers, standing, gradients, waiting, activations, gathered, step, host, start)


class Plan:
    """A stage's run on some GPUs.

    Args:
        stage: Its name.
        config: Its settings.
        gpu: Kind, a key of `GPUS`.
        gpus: Ranks.
        mfu: Share of the GPU's peak that model FLOPs reach.

    Raises:
        ValueError: The global batch does not divide over ranks and micro-batches.
    """

    def __init__(self, stage: StageName, config: Any, gpu: str, gpus: int, mfu: float) -> None:
        self.stage, self.config, self.gpu, self.gpus, self.mfu = stage, config, gpu, gpus, mfu
        engine = config.engine
        self.micro_batch, left = divmod(engine.global_batch, gpus * engine.accumulation)
        if left or not self.micro_batch:
            raise ValueError(
                f"engine.global_batch: {engine.global_batch} samples do not divide over {gpus} GPUs x {engine.accumulation} micro-batches; "
                f"the nearest that do: {', '.join(str(n) for n in _divisible(engine.global_batch, gpus * engine.accumulation))}"
            )
        self.model = meta.build(stage, config)
        parameters = list(self.model.module.parameters())
        self.sizes = Sizes(
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
            sum(b.numel() * b.element_size() for b in self.model.module.buffers()),
            max(p.numel() for p in parameters),
        )
        self.can_checkpoint = self.model.set_checkpointing(False)
        self._costs: dict[tuple[int, bool, bool], meta.StepCost] = {}

    def cost(self, micro_batch: int, checkpointing: bool, keep_gradients: bool = False) -> meta.StepCost:
        """Of a forward and backward pass, measured once."""
        known = (micro_batch, checkpointing and self.can_checkpoint, keep_gradients)
        if known not in self._costs:
            self._costs[known] = meta.measure(self.model, *known)
        return self._costs[known]

    def activations(self, engine: EngineConfig) -> float:
        """Peak bytes of a micro-batch's pass beside weights; without ZeRO and accumulation with its gradients, which grow as activations go."""
        micro = engine.global_batch // (self.gpus * engine.accumulation)
        keep = engine.zero_stage == 0 and engine.accumulation == 1
        return self.cost(micro, engine.checkpoint_activations, keep).peak

    def memory(self, engine: EngineConfig | None = None) -> Memory:
        """On each GPU, with these or other settings."""
        engine = engine or self.config.engine
        return memory_of(self.sizes, engine, self.gpus, self.activations(engine))

    def at_zero(self, zero: Literal[0, 1, 2, 3]) -> EngineConfig:
        """These settings at another ZeRO stage."""
        offload = self.config.engine.offload
        allowed = "none" if zero == 0 else "optimizer" if zero < 3 and offload == "all" else offload
        return self.config.engine.model_copy(update={"zero_stage": zero, "offload": allowed})

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a run can fill."""
        return self.usable_of(GPUS[self.gpu])

    @staticmethod
    def usable_of(gpu: Gpu) -> float:
        """The same of a kind of GPU."""
        return (gpu.memory_gb * (1 - FRAGMENTED) - CONTEXT_GB) * GB

    @property
    def fits(self) -> bool:
        """Whether a GPU holds the peak."""
        return self.memory().peak <= self.usable

    @property
    def tokens_per_step(self) -> int:
        """Through the model, all samples."""
        return self.model.tokens * self.config.engine.global_batch

    @cached_property
    def flops_per_step(self) -> int:
        """Model FLOPs (`training.flops`) of all samples: without what checkpointing computes twice."""
        engine = self.config.engine
        return self.cost(self.micro_batch, engine.checkpoint_activations).flops * self.gpus * engine.accumulation

    @property
    def computed_share(self) -> float:
        """Share of the GPU's peak that is computed where model FLOPs reach `mfu` of it: more where checkpointing computes twice."""
        cost = self.cost(self.micro_batch, self.config.engine.checkpoint_activations)
        return self.mfu * (1 + cost.recomputed / cost.flops)

    @property
    def hours(self) -> float:
        """Of the whole run, where model FLOPs reach the share of the GPU's peak that was given (`mfu`)."""
        return self.config.engine.steps * self.flops_per_step / (self.gpus * GPUS[self.gpu].teraflops * 1e12 * self.mfu) / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: masters, moments and average of what is trained, and the buffers; a frozen base is not in it."""
        return self.sizes.trained * (12 + (4 if self.config.engine.ema else 0)) + self.sizes.buffers

    @property
    def cached_bytes(self) -> int:
        """Of one sample in the encoded cache."""
        return self.model.cached_bytes

    def nearest(self) -> Plan | None:
        """The plan that fits and costs the least time; one with a LoRA only where none in full does. None where none fits."""
        for plan in filter(None, (self, self._with_lora())):
            for engine in plan._ways():
                if plan.memory_without_activations(engine) <= plan.usable and plan.memory(engine).peak <= plan.usable:
                    return plan._at(engine)
        return None

    def least(self) -> float:
        """Bytes of a GPU that the most frugal settings need."""
        plans = [plan for plan in (self, self._with_lora()) if plan]
        return min(plan.memory(engine).peak for plan in plans for engine in list(plan._ways())[-1:])

    def memory_without_activations(self, engine: EngineConfig) -> float:
        """What is needed whatever the activations are; spares measuring them where even this is too much."""
        return memory_of(self.sizes, engine, self.gpus, 0.0).peak

    def _at(self, engine: EngineConfig) -> Plan:
        return Plan(self.stage, self.config.model_copy(update={"engine": engine}), self.gpu, self.gpus, self.mfu)

    def _with_lora(self) -> Plan | None:
        config = self.config
        if self.stage == "dit" and config.adapter == "full" and config.base:
            config = config.model_copy(update={"adapter": "lora"})
        elif self.stage == "predictor" and config.adapter is None and config.base:
            config = config.model_copy(update={"adapter": AdapterConfig()})
        else:
            return None
        return Plan(self.stage, config, self.gpu, self.gpus, self.mfu)

    def _ways(self) -> list[EngineConfig]:
        """All settings that need no more memory than these, the least costly first."""
        engine = self.config.engine
        ways = []
        for zero in range(engine.zero_stage, 4):
            for checkpointing in {engine.checkpoint_activations, self.can_checkpoint or engine.checkpoint_activations}:
                for halvings in range(self.micro_batch.bit_length()):
                    if self.micro_batch % 2**halvings:
                        break
                    for offload in _OFFLOAD[_OFFLOAD.index(engine.offload) :]:
                        if offload != "none" and zero < (3 if offload == "all" else 1):
                            continue
                        cost = _ZERO_COST[zero] + _CHECKPOINT_COST * checkpointing + _HALF_COST * halvings + _OFFLOAD_COST[offload]
                        update = {
                            "zero_stage": zero,
                            "checkpoint_activations": checkpointing,
                            "accumulation": engine.accumulation * 2**halvings,
                            "offload": offload,
                        }
                        ways.append((cost, engine.model_copy(update=update)))
        return [way for _, way in sorted(ways, key=lambda entry: entry[0])]


_OFFLOAD: tuple[Literal["none", "optimizer", "all"], ...] = ("none", "optimizer", "all")
_ZERO_COST = {0: 0, 1: 1, 2: 2, 3: 20}
_OFFLOAD_COST = {"none": 0, "optimizer": 80, "all": 200}
_CHECKPOINT_COST, _HALF_COST = 33, 8
"""Per cent of a step's time, roughly: checkpointing computes the forward pass again; the others were not measured and only order what is tried."""


def _divisible(batch: int, parts: int) -> list[int]:
    below = batch // parts * parts
    return [n for n in (below, below + parts) if n]
