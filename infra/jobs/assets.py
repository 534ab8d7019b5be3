"""`lato assets`: list, fetch, verify."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Model files and sample clips, by sha256.", no_args_is_help=True)


@app.command("list")
def list_assets() -> None:
    """Every asset: whether it is here, its licence, and what it is."""
    from infra import assets
    from infra.console import say, table

    rows = [
        (name, assets.verify(name), "needed" if asset.needed else "optional", asset.licence, asset.note)
        for name, asset in assets.load_catalog().items()
    ]
    table("Assets", ["name", "here", "for demo and tests", "licence", "what"], rows)
    say(f"in {assets.folder()}")


@app.command()
def fetch(names: Annotated[list[str] | None, typer.Argument(help="Names; none fetches all that demo and tests need.")] = None) -> None:
    """Fetches assets that are not here, from the first mirror that answers."""
    from infra import assets
    from infra.console import say

    catalog = assets.load_catalog()
    for name in names or [name for name, asset in catalog.items() if asset.needed]:
        here = name in catalog and assets.verify(name) == "ok"
        path = assets.fetch(name)
        if not here:
            say(f"fetched {name} ({catalog[name].licence}) -> {path}")
    assets.drop_carriers()


@app.command()
def verify() -> None:
    """Hashes every asset that is here; exits with 1 if one is wrong or a needed one is missing."""
    from infra import assets
    from infra.console import say

    bad = False
    for name, asset in assets.load_catalog().items():
        state = assets.verify(name)
        bad |= state.startswith("wrong") or (state == "missing" and asset.needed)
        say(f"{name}: {state}")
    raise typer.Exit(int(bad))
