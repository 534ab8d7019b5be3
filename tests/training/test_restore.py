"""A checkpoint's files read by range: what is missing in them is told, and never filled with anything."""

import json

import pytest
import torch
from safetensors.torch import save_file

from infra.errors import UserError
from training.restore import ShardFiles


def checkpoint_of(folder, tensors, ranges):
    """One rank's files, and their marker."""
    name = "rank-00000-of-00001"
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"ranges": ranges}))
    return {"world_size": 1, "files": {path.name: {"bytes": path.stat().st_size} for path in folder.iterdir()}}


def test_ranges_are_read_and_moments_that_were_not_made_are_zeros(tmp_path):
    marker = checkpoint_of(tmp_path, {"weight/a": torch.arange(6.0)}, {"a": (0, 6, (2, 3))})
    files, part, moment = ShardFiles(str(tmp_path), marker), torch.empty(3), torch.ones(3)
    files.fill([("weight", "a", 2, part), ("exp_avg", "a", 2, moment)])
    assert part.tolist() == [2, 3, 4] and moment.tolist() == [0, 0, 0]
    assert files.whole("weight", "a").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_parameter_of_which_a_part_is_nowhere_is_told(tmp_path):
    marker = checkpoint_of(tmp_path, {"weight/a": torch.zeros(5)}, {"a": (0, 5, (2, 3))})
    with pytest.raises(UserError, match="parts of a are in no file of it"):
        ShardFiles(str(tmp_path), marker)


def test_weights_that_are_not_there_are_told(tmp_path):
    files = ShardFiles(str(tmp_path), checkpoint_of(tmp_path, {"exp_avg/a": torch.zeros(6)}, {"a": (0, 6, (2, 3))}))
    with pytest.raises(UserError, match="weight of a is not in it"):
        files.whole("weight", "a")
