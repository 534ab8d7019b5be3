"""What `lato train plan` prints."""

from __future__ import annotations

from typing import Any

from infra.console import say, table
from infra.errors import UserError
from training.gpus import GPUS
from training.plan import GB, Memory, Plan
from training.resume_rules import differences


def print_plan(stage: Any, settings: Any, gpu: str, mfu: float, samples: int) -> None:
    """Prints a plan.

    Raises:
        UserError: It does not fit, or its batch does not divide; says what would.
    """
    engine = settings.engine
    try:
        plan = Plan(stage, settings, gpu, engine.workers, mfu)
    except ValueError as error:
        raise UserError(str(error)) from error
    kind = GPUS[gpu]
    say(f"{stage} on {plan.gpus} x {gpu} ({kind.memory_gb:g} GB, {kind.teraflops:g} TFLOPS bf16; {kind.source})")
    for note in plan.model.notes:
        say(f"  assumed: {note}")
    sizes = plan.sizes
    say(
        f"parameters    {sizes.total:,}, trained {sizes.trained:,} ({100 * sizes.trained / sizes.total:.1f} %), buffers {_size(sizes.buffers)}"
    )
    print_memory(plan)
    cost = plan.cost(plan.micro_batch, False), plan.cost(plan.micro_batch, True) if plan.can_checkpoint else None
    anew = f", with checkpointing {_size(cost[1].saved)} and {_size(cost[1].peak)}" if cost[1] else " (this model has no checkpointing)"
    say(f"activations   of a micro-batch of {plan.micro_batch}: kept {_size(cost[0].saved)}, peak {_size(cost[0].peak)}{anew}")
    say(
        f"at the start  {_size(plan.memory().host_at_start)} of the machine's memory for each rank; largest tensor {_size(4 * sizes.largest)} in fp32"
    )
    if plan.memory().host:
        say(f"offloaded     {_size(plan.memory().host)} of the machine's memory for each rank")
    say(f"a step        {engine.global_batch} samples, {plan.tokens_per_step:,} tokens, {plan.flops_per_step:.3g} FLOPs of the model")
    again = f"; with what checkpointing computes twice, {100 * plan.computed_share:.0f} % of peak" if plan.computed_share > mfu else ""
    say(f"the run       {engine.steps:,} steps: {plan.hours:.1f} hours at an MFU of {100 * mfu:g} % (an assumption: --mfu{again})")
    say(f"a checkpoint  {_size(plan.checkpoint_bytes)}")
    if plan.cached_bytes:
        say(f"encoded       {_size(plan.cached_bytes)} a sample, {_size(plan.cached_bytes * samples)} for {samples:,}")
    if not plan.fits:
        raise UserError(_refusal(plan))


def print_memory(plan: Plan) -> None:
    """Prints the table of memory by ZeRO stage."""
    stages: tuple[Any, ...] = (0, 1, 2, 3)
    engines = [plan.at_zero(zero) for zero in stages]
    memories = [plan.memory(engine) for engine in engines]
    names = {
        "weights": "weights", "optimizer": "masters, moments", "average": "average (EMA)", "buffers": "buffers", "standing": "gradients, bucket kept",
        "gradients": "gradients", "activations": "activations, peak", "gathered": "gathered, buckets", "step": "of the step", "peak": "peak",
    }  # fmt: skip
    rows = [[label, *(_size(getattr(memory, name)) for memory in memories)] for name, label in names.items()]
    rows.append([f"of {plan.usable / GB:.1f} GB usable", *(_verdict(plan, memory) for memory in memories)])
    chosen = plan.config.engine.zero_stage
    table("Memory on each GPU", ["", *(f"ZeRO {zero}{' (chosen)' if zero == chosen else ''}" for zero in stages)], rows)


def _verdict(plan: Plan, memory: Memory) -> str:
    return "fits" if memory.peak <= plan.usable else f"{(memory.peak - plan.usable) / GB:.1f} GB too much"


def _refusal(plan: Plan) -> str:
    said = (
        f"this does not fit: it needs {plan.memory().peak / GB:.1f} GB of each {plan.gpu}, which has {plan.usable / GB:.1f} GB for it "
        f"({GPUS[plan.gpu].memory_gb:g} GB less what CUDA and the allocator take). "
    )
    nearest = plan.nearest()
    if nearest is None:
        least = plan.least()
        fit = [name for name, kind in GPUS.items() if plan.usable_of(kind) >= least]
        return (
            said
            + f"No setting of it fits on {plan.gpus} of them: the least is {least / GB:.1f} GB. Take more GPUs, or one of: {', '.join(fit) or 'none of the table'}"
        )
    changed = differences(plan.config.model_dump(mode="json"), nearest.config.model_dump(mode="json"))
    words = " ".join(f"{key}={'true' if new is True else new}" for key, (_, new) in changed.items())
    return said + f"The nearest plan that fits needs {nearest.memory().peak / GB:.1f} GB: {words}"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
