"""Sessions of the small face networks: onnxruntime, one thread, and the file's graph put into the form that it runs fast.

Two things in files of recognizers cost more than half of a face on the CPU (`python -m tests.benchmarks.recognizer_speed`). Old files list their weights
among the inputs, so that nothing can be folded into the convolutions. And onnxruntime has no PRelu for the blocked layout that its convolutions work in:
every one is computed slowly, between two copies into the other layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_GPU = ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")


def open_session(path: Path, batched: bool = False, gpu: bool = False) -> object:
    """An onnxruntime session of one thread, on the CPU unless a GPU is asked for: a worker that was given none must not take a share of one.

    Args:
        path: The ONNX file.
        batched: Open the batch axis, in memory: the files have a batch of 1 baked in.
        gpu: Run it on a GPU.

    Raises:
        ValueError: A GPU is asked for, and this onnxruntime has no provider for one.
    """
    import onnxruntime

    there = [name for name in _GPU if name in onnxruntime.get_available_providers()] if gpu else []
    if gpu and not there:
        raise ValueError(
            f"a GPU was asked for, but onnxruntime has none of {', '.join(_GPU)} here. Install onnxruntime-gpu on GPU nodes, or set gpus=0."
        )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(_prepared(path, batched), options, providers=[*there, "CPUExecutionProvider"])


def _prepared(path: Path, batched: bool) -> bytes:
    import onnx

    model = onnx.load(str(path))
    model.ir_version = max(model.ir_version, 4)  # before it weights had to be inputs
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    _replace_prelu(model)
    if batched:
        _open_batch_axis(model)
    return model.SerializeToString()


def _replace_prelu(model: Any) -> None:
    """PRelu(z) = a z + (1 - a) max(z, 0) for any slope a: both products as depthwise 1 x 1 convolutions, which stay in the blocked layout."""
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        slope = weights.get(node.input[1]) if node.op_type == "PRelu" else None
        a = numpy_helper.to_array(slope) if slope is not None else np.empty(0)
        if a.ndim != 3 or a.shape[1:] != (1, 1):  # not one slope a channel of a picture: left as it is
            nodes.append(node)
            continue
        inside, out = node.input[0], node.output[0]
        factors = {f"{out}/below": a, f"{out}/rest": 1 - a}
        model.graph.initializer.extend(numpy_helper.from_array(each.reshape(-1, 1, 1, 1), name) for name, each in factors.items())
        depthwise: dict[str, Any] = {"group": len(a), "kernel_shape": [1, 1]}
        nodes += [
            helper.make_node("Relu", [inside], [f"{out}/positive"]),
            helper.make_node("Conv", [inside, f"{out}/below"], [f"{out}/all"], **depthwise),
            helper.make_node("Conv", [f"{out}/positive", f"{out}/rest"], [f"{out}/more"], **depthwise),
            helper.make_node("Add", [f"{out}/more", f"{out}/all"], [out]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _open_batch_axis(model: Any) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # shapes in between are inferred anew
    for node in model.graph.node:
        if node.op_type == "Reshape":
            _reshape_any_batch(model, node)


def _reshape_any_batch(model: Any, node: Any) -> None:
    """A Reshape to (1, n) becomes one to (any, n)."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == node.input[1]:
            shape = numpy_helper.to_array(tensor).copy()
            if len(shape) and shape[0] == 1 and (shape > 0).all():
                shape[0] = -1
                tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
