"""The cluster file fits Ray's own schema."""

import json
from pathlib import Path

import jsonschema
import ray
import yaml

ROOT = Path(__file__).parents[2]


def test_cluster_file_fits_rays_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert any(kind["resources"].get("GPU") for kind in types.values())
    assert all(kind.get("max_workers", 0) <= cluster["max_workers"] for kind in types.values())
    assert any("constraints.txt" in command for command in cluster["setup_commands"])
