"""`lato data`, what asks about a build or a version and changes neither; labels of an audit are kept for the next build."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.jobs.options import BUILD, VERSION, BuildDir, BuiltVersion, VersionDir


def audit(
    work_dir: BuildDir = BUILD,
    version: BuiltVersion = VERSION,
    per_stratum: Annotated[int, typer.Option(min=1, help="Pairs of each stratum: accepted, and each filter's just-rejected.")] = 20,
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page on 127.0.0.1.")] = 8300,
) -> None:
    """Label a sample of accepted and just-rejected pairs in a browser; labels beat the filters at the next build."""
    from data_pipeline.audit import serve_audit, summarize
    from infra.addresses import folder_uri
    from infra.console import say, table

    work = folder_uri(work_dir)
    server = serve_audit(work, version, per_stratum, seed, port)
    say(f"http://127.0.0.1:{port}  (g: good, b: bad; stop with Ctrl-C)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    table("Labels", ["stratum", "labelled", "good", "rate", "low", "high"], summarize(work))


def verify(version: Annotated[str, typer.Argument(help="Folder of a published version.")]) -> None:
    """Re-reads everything: hashes, counts, members, decodability. Exits with 1 if anything is wrong."""
    from data_pipeline.verify import verify_version
    from infra.addresses import folder_uri
    from infra.console import say

    wrong = verify_version(folder_uri(version))
    for line in wrong:
        say(line)
    say("all well" if not wrong else f"{len(wrong)} things are wrong")
    raise typer.Exit(int(bool(wrong)))


def report(work_dir: BuildDir = BUILD, version: BuiltVersion = VERSION) -> None:
    """One page about a version: funnel, filters, coverage, groups, contact sheets of accepted and just-rejected pairs."""
    from data_pipeline.report import write_data_report
    from infra.addresses import folder_uri
    from infra.console import say

    say(write_data_report(folder_uri(work_dir), version))


def why(
    what: Annotated[str, typer.Argument(help="A sample's key, a source id, or source_id@seconds.")],
    work_dir: BuildDir = BUILD,
    version: BuiltVersion = VERSION,
) -> None:
    """The path of a sample, source or frame: what became of it, every score beside its threshold."""
    from data_pipeline.why import why as explain
    from infra.addresses import folder_uri
    from infra.console import say

    for line in explain(what, folder_uri(work_dir), version):
        say(line)


def diff(first: VersionDir, second: Annotated[str, typer.Argument(help="Folder of another.")]) -> None:
    """What changed from one version to another: samples added, removed and why, moved to another split, changed."""
    from data_pipeline.diff import diff_versions
    from infra.addresses import folder_uri
    from infra.console import say

    found = diff_versions(folder_uri(first), folder_uri(second))
    say(f"{found['samples'][0]} -> {found['samples'][1]} samples" + ("; the bytes are equal" if found["equal"] else ""))
    for name in ("added", "removed", "moved", "changed"):
        shown = ", ".join(str(entry) for entry in found[name][:5])
        say(f"{len(found[name]):>7} {name}" + (f": {shown}{' ...' if len(found[name]) > 5 else ''}" if shown else ""))
    for reason, count in found["removed_because"].items():
        say(f"{count:>14} {reason}")
