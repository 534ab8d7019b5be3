"""The table of presets in docs/training.md. Run: `python -m tests.benchmarks.preset_table`, which writes it anew between its marks."""

from __future__ import annotations

from pathlib import Path

from training import presets
from training.plan import GB, Plan

PAGE = Path(__file__).parents[2] / "docs/training.md"
BEGIN, END = "<!-- presets -->", "<!-- /presets -->"


def row(stage: presets.StageName, name: presets.PresetName) -> str:
    """One preset on its own number of H100s."""
    config = presets.preset(stage, name)
    engine, plan = config.engine, Plan(stage, config, "h100", config.engine.workers, 0.35)
    size, trained = (f"{count / 1e6:,.1f}" for count in (plan.sizes.total, plan.sizes.trained))
    batch = f"{engine.steps:,} x {engine.global_batch}"
    cells = [
        f"{stage} {name}",
        size,
        trained,
        batch,
        engine.workers,
        engine.zero_stage,
        f"{plan.memory().peak / GB:.1f}",
        f"{plan.checkpoint_bytes / 1e9:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Writes the table."""
    head = "| preset | million parameters | trained | steps x batch | ranks | ZeRO | GB of each GPU | GB a checkpoint |\n|---|---|---|---|---|---|---|---|"
    lines = [head, *(row(stage, name) for stage in presets.STAGES for name in presets.NAMES)]
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(before + "\n" + "\n".join(lines) + "\n" + after)


if __name__ == "__main__":
    main()
