"""A dataset card in Hugging Face's format and a Croissant file (mlcommons.org/croissant/1.0), beside the shards."""

from __future__ import annotations

import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.extend import read_components
from data_pipeline.published import licence_text, licences_of, read_index, read_manifest_table, write_index
from infra.addresses import join
from infra.storage import commit_changed, sha256_bytes

CARD, CROISSANT = "README.md", "croissant.json"
_CONTEXT = Path(__file__).with_name("croissant_context.json")
"""The context that Croissant 1.0 prescribes: readers take its terms for granted."""
_COUNTED = ("split", "kind", "edit_kind", "source_id", "target_id", "licence", "target_licence")
_PIECE = 1_000
_TYPES = {str: "sc:Text", int: "sc:Integer", float: "sc:Float", bool: "sc:Boolean"}


def write_card(folder: str) -> None:
    """Writes both for a published version. Where they are worded otherwise than the LaTo that published it did, its index learns their hashes."""
    index = read_index(folder)
    texts = _describe(index, read_manifest_table(folder), read_components(folder))
    for name, text in texts.items():
        commit_changed(join(folder, name), text)
    files = index.get("files")
    if files is not None and files | _hashes(texts) != files:
        write_index(folder, index | {"files": files | _hashes(texts)})


def card_hashes(index: dict[str, Any], manifest: bytes, tied: dict[str, Any] | None) -> dict[str, str]:
    """sha256 by name of what `write_card` will write of a version, from its index, the bytes of its manifest and what ties its sources."""
    return _hashes(_describe(index, pq.read_table(io.BytesIO(manifest)), tied))


def _hashes(texts: dict[str, bytes]) -> dict[str, str]:
    return {name: sha256_bytes(text) for name, text in texts.items()}


def _describe(index: dict[str, Any], manifest: pa.Table, tied: dict[str, Any] | None) -> dict[str, bytes]:
    """Both by name; the card last: it says that both are there."""
    croissant = json.dumps(_croissant(index, manifest), indent=1, sort_keys=True) + "\n"
    return {CROISSANT: croissant.encode(), CARD: _card(index, manifest, tied).encode()}


def _rows(manifest: pa.Table) -> Iterator[dict[str, Any]]:
    """What the card counts of the samples, some rows as Python values at a time."""
    counted = manifest.select([name for name in manifest.schema.names if name in _COUNTED])
    return (row for piece in counted.to_batches(max_chunksize=_PIECE) for row in piece.to_pylist())


def _card(index: dict[str, Any], manifest: pa.Table, tied: dict[str, Any] | None) -> str:
    def counts(names: Iterable[str]) -> str:
        return "\n".join(f"| {_cell(name)} | {count:,} |" for name, count in Counter(names).most_common())

    size = next(
        label
        for limit, label in ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e12, "n>1M"))
        if len(manifest) < limit
    )
    sources = {row[end] for row in _rows(manifest) for end in ("source_id", "target_id") if row.get(end)}
    licences = sorted(set[str]().union(*map(licences_of, _rows(manifest))))
    return f"""---
pretty_name: {json.dumps(index["name"])}
license: {"cc0-1.0" if licences == ["CC0-1.0"] else "other"}
task_categories: [image-to-image]
size_categories: ["{size}"]
tags: [face-editing, landmarks, webdataset]
configs:
- config_name: default
  data_files:
{chr(10).join(f"  - {{split: {split}, path: shards/{split}-*.tar}}" for split in sorted({str(row["split"]) for row in _rows(manifest)}))}
---

# {index["name"]}

Pairs of pictures of one person before and after an edit of expression or head pose, with the instruction, 68 landmarks of both on a 512 px canvas, and where each
comes from. {len(manifest):,} samples from {len(sources):,} sources{_components(tied, sources)}, digest `{index["digest"]}`.

A sample is `<key>.source.jpg`, `<key>.target.jpg`, `<key>.landmarks.npy` (float32, 2 x 68 x 2) and `<key>.json`. `manifest.parquet` has a row a sample with the byte
offset of every member; `index.json` has the sha256 of every shard.

{_example(index)}| split | samples |
|---|---|
{counts(str(row["split"]) for row in _rows(manifest))}

| kind of source | samples |
|---|---|
{counts(str(row["kind"]) for row in _rows(manifest))}

| kind of edit | samples |
|---|---|
{counts(str(row["edit_kind"]) for row in _rows(manifest))}

| licences of source and target | samples |
|---|---|
{counts(map(licence_text, _rows(manifest)))}

{_models(index)}{_sides(tied)}

Faces are measured by detectors, not labelled by hand; instructions come from templates. People can be taken out (`lato data forget`); what was removed stays
removed in later builds.
"""


def _example(index: dict[str, Any]) -> str:
    """How the first shard is read, by the name that it has; nothing where all was forgotten."""
    if not index["shards"]:
        return ""
    first = min((shard["name"] for shard in index["shards"]), key=lambda name: (not name.startswith("train-"), name))
    return f"""```python
import webdataset

for sample in webdataset.WebDataset("shards/{first}", shardshuffle=False).decode("rgb"):
    source, target, meta = sample["source.jpg"], sample["target.jpg"], sample["json"]  # meta["instruction"], meta["edit"], meta["provenance"]
```

"""


def _cell(text: str) -> str:
    """Words of a work list in a table: as they are, on one line, and no markup."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*|\[\]])", r"\\\1", escaped)


def _components(tied: dict[str, Any] | None, sources: set[str]) -> str:
    """How many the sources are when those of one declared person, of one group, and with faces that are alike count as one; nothing where it is not known."""
    if tied is None:
        return ""
    of_source = tied["components"]
    count = len({of_source.get(name, name) for name in sources})
    return f" in {count:,} component{'s' if count != 1 else ''} (sources that share a declared person, a group, a file or a face)"


def _sides(tied: dict[str, Any] | None) -> str:
    """What holds of the splits: by what is declared for sure, by faces as far as they were compared."""
    declared = "No source, file, group or declared person is in two splits."
    held = (tied or {}).get("held_out")
    if not held or not held["tracks"]:
        return declared + " People who are not declared are told apart by a face recognizer, as far as it reaches."
    nearest = held["most_alike"][0]["similarity"] if held["most_alike"] else None
    most = f", the most alike has a cosine of {nearest:.2f}" if nearest is not None else ""
    return (
        f"{declared} People who are not declared are told apart by a face recognizer: of {held['tracks']:,} tracks of real faces in val and test, "
        f"{held['over']:,} reach {held['threshold']:g}, from where two count as one person, with a track in train{most}."
    )


def _models(index: dict[str, Any]) -> str:
    """What measured or made the samples; nothing where the version is older than that list."""
    rows = "\n".join(
        f"| {_cell(model['name'])} | {_cell(model['licence'])} | {model['sha256'] or '-'} |" for model in index.get("models", [])
    )
    if not rows:
        return ""
    return f"""The models that measured the pictures (and made them, where they are generated). Their licences are not the samples', and `lato data export` does not
filter by them: see whether they allow what you mean to do.

| model | licence | sha256 |
|---|---|---|
{rows}

"""


def _croissant(index: dict[str, Any], manifest: pa.Table) -> dict[str, Any]:
    fields = []
    for column in manifest.schema.names if len(manifest) else ():  # nothing is left of a version that was forgotten whole
        sample = next((value.as_py() for value in manifest[column] if value.is_valid), "")
        fields.append({
            "@type": "cr:Field", "@id": f"samples/{column}", "name": column, "dataType": _TYPES.get(type(sample), "sc:Text"),
            "source": {"fileObject": {"@id": "manifest"}, "extract": {"column": column}},
        })  # fmt: skip
    shards = [
        {"@type": "cr:FileObject", "@id": shard["name"], "name": shard["name"], "contentUrl": f"shards/{shard['name']}",
         "contentSize": f"{shard['bytes']} B", "encodingFormat": "application/x-tar", "sha256": shard["sha256"]}
        for shard in index["shards"]
    ]  # fmt: skip
    table = {
        "@type": "cr:FileObject", "@id": "manifest", "name": "manifest", "contentUrl": index["manifest"],
        "encodingFormat": "application/x-parquet", "sha256": index["manifest_sha256"],
    }  # fmt: skip
    return {
        "@context": json.loads(_CONTEXT.read_text()),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": index["name"],
        "description": "Face-edit pairs with instructions and landmarks.",
        "version": f"1.0.0+{index['digest'][:12]}",  # readers want three numbers; the digest is what tells versions apart
        "license": sorted(set[str]().union(*map(licences_of, _rows(manifest)))),
        "distribution": [table, *shards],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "field": fields}],
    }  # fmt: skip
