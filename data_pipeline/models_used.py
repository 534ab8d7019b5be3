"""The models that had a part in a version, with sha256 and licence: its index lists them, its card and an export tell of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.groups import GroupsConfig, licence_of
from data_pipeline.rewrite import RewriteConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.synthetic.weights import read_weights

Model = dict[str, Any]
"""`name` (its role, or group and file), `sha256` (None of one that another program holds), `licence`."""


def list_models(
    hashes: Mapping[str, str],
    groups: GroupsConfig,
    synthetic: SyntheticConfig,
    instructions: RewriteConfig,
    work: str,
    before: Iterable[Model],
) -> list[Model]:
    """The models of a build, each once, by name.

    Args:
        hashes: Role, or `group/file` -> sha256, of the perception models.
        groups: Whose pack may be another's.
        synthetic: What generated sources.
        instructions: What rewrote instructions.
        work: The build's folder, where the weights that edited photos are written down.
        before: Those of the version that is extended.
    """
    found: list[Model] = [{"name": name, "sha256": digest, "licence": licence_of(name, digest, groups)} for name, digest in hashes.items()]
    if synthetic.diffusers:
        weights = read_weights(synthetic.diffusers.pipeline, work) or [
            {"name": f"diffusers {synthetic.diffusers.pipeline}", "sha256": None}
        ]
        found += [file | {"licence": synthetic.diffusers.licence} for file in weights]
    if instructions.endpoint:
        found.append({"name": f"instructions {instructions.model}", "sha256": None, "licence": "unknown"})
    every = {(model["name"], model["sha256"] or "", model["licence"]): model for model in [*before, *found]}
    return [every[key] for key in sorted(every)]
