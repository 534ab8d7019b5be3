"""What putting a recognizer's graph into the form that runs fast saves, a face; a section of docs/benchmarks_data.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from lato.faces.onnx_session import open_session
from tests.benchmarks.look_speed import interleaved
from tests.benchmarks.page import Row


def recognizer(models: Path) -> list[Row]:
    """CPU time of a face with SFace's file as it is and as we open it, of opening it, and how far the vectors are apart."""
    file = models / "face_recognition_sface_2021dec.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def plainly() -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    face = np.random.default_rng(0).uniform(0, 255, (1, 3, 112, 112)).astype(np.float32)
    as_it_is, as_opened = plainly(), open_session(file)
    assert isinstance(as_opened, onnxruntime.InferenceSession)
    (first,), (second,) = as_it_is.run(None, {"data": face}), as_opened.run(None, {"data": face})
    works = {
        "file": lambda: as_it_is.run(None, {"data": face}),
        "ours": lambda: as_opened.run(None, {"data": face}),
        "file, opened": plainly,
        "ours, opened": lambda: open_session(file),
    }
    took = {
        name: 1000 * seconds
        for name, seconds in interleaved(works, often={"file": 40, "ours": 40, "file, opened": 3, "ours, opened": 3}).items()
    }
    return [
        (
            "a face, with the file as it is / as it is opened",
            f"{took['file']:.1f} ms / {took['ours']:.1f} ms = {took['file'] / took['ours']:.2f}",
        ),
        ("opening the file as it is / as it is opened", f"{took['file, opened']:.0f} ms / {took['ours, opened']:.0f} ms"),
        ("largest difference of a number, of the largest", f"{np.abs(first - second).max() / np.abs(first).max():.0e}"),
    ]
