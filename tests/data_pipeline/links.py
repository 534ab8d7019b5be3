"""Sources, pairs and extended versions as the split sees them, with nothing behind them."""

import numpy as np

from data_pipeline.divide import divide, tie
from data_pipeline.extend import Base
from data_pipeline.split import SplitConfig
from data_pipeline.worklist import WorkItem


def source(name, kind="video", **columns):
    return WorkItem(source_id=name, uri=f"{name}.mp4", kind=kind, **columns)


def pair(name):
    return {"source_id": name, "target_id": name, "from_track": 0, "to_track": 0}


def base_of(splits):
    rows = [{"key": f"p_{name}", "source_id": name, "split": side, "identity": f"{name}/0"} for name, side in splits.items()]
    return Base("/nowhere", "/nowhere", {"digest": "x", "name": "v1", "shards": []}, rows)


def face(*numbers):
    vector = np.zeros(16, np.float32)
    vector[list(numbers)] = 1.0
    return vector / np.linalg.norm(vector)


def divided(accepted, items, centroids, base, config, merges=()):
    return divide(accepted, items, tie(accepted, items, centroids, base, config, {}, {}, merges), base, config)


def components_of(items, base=None, contents=None, merges=()):
    """Source id -> component, by what is known beside faces."""
    return tie([], items, {}, base, SplitConfig(), {}, contents or {}, merges).components.of_source
