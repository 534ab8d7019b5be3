"""`lato data replay`: does what is stored still come out?"""

from __future__ import annotations

from typing import Annotated

import typer

from infra.jobs.options import BUILD, BuildDir


def replay(
    source: Annotated[list[str] | None, typer.Option(help="Source id; may be given more than once.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Instead, so many sources; the same ones each time.")] = 0,
    work_dir: BuildDir = BUILD,
    pack: Annotated[str | None, typer.Option(help="Folder of the insightface pack that identity was computed with.")] = None,
) -> None:
    """Looks anew at observed sources and compares each column with what is stored. Changes nothing; exits with 1 where a bit differs."""
    from data_pipeline.groups import GroupsConfig
    from data_pipeline.replay import replay as look_again
    from infra.console import say, table
    from infra.errors import UserError
    from infra.jobs.common import built_folder, perception_models

    if bool(source) == bool(sample):
        raise UserError("give --source ID (once or more), or --sample N")
    replayed = look_again(built_folder(work_dir), perception_models(), source or [], sample, GroupsConfig(pack=pack))
    notes: dict[str, list[str]] = {}
    for one in replayed:
        groups = "".join(f", {count} of {name}" for name, count in sorted(one.groups.items()))
        said = f"not compared: {one.changed}" if one.changed else f"{one.rows} faces{groups}: {'equal' if one.equal else 'differ'}"
        say(f"{one.source_id}: {said}")
        for note in one.notes:
            notes.setdefault(note, []).append(one.source_id)
    rows = [
        (one.source_id, found.where, found.column, found.rows, "-" if found.largest is None else f"{found.largest:.3g}")
        for one in replayed
        for found in one.differences
    ]
    if rows:
        table("Differences", ["source", "of", "column", "rows", "largest"], rows)
    for note, names in notes.items():
        say(f"{note} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})")
    unequal = sum(not one.equal for one in replayed)
    if rows and not notes:
        say(
            "processor, libraries, models and settings are those that the stored parts were made with: what differs is the code, or was changed in the file"
        )
    elif rows:
        say("other processors and library versions may differ in the last bits; a large difference is another reading")
    say(f"{len(replayed) - unequal} of {len(replayed)} sources equal in every bit")
    raise typer.Exit(int(bool(unequal)))
