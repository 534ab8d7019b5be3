"""The tokenizer stage in one process: what it trains with weights in bf16."""

import numpy as np
import torch

from training.config import DataSource
from training.data import Dataset, mixture
from training.stages.tokenizer import TokenizerConfig, TokenizerStage


def test_it_trains_is_measured_and_is_drawn_in_bf16(small):
    """As DeepSpeed makes it: parameters in bf16, buffers as they were; what is made of landmarks stays in canvas pixels that are as exact as theirs."""
    dataset = Dataset.open(str(small))
    config = TokenizerConfig(widths=(32, 32), code_dim=16, num_codes=32)
    stage = TokenizerStage(config, [dataset], mixture([dataset], [DataSource(uri=dataset.uri)], 0))
    model = stage.build()
    masters = [torch.nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW(masters, lr=3e-3)
    before = stage.validate(model)["held_out"]
    for step in range(10):
        stage.loss(model, stage.read(stage.data.batch(step, 8))).per_sample.mean().backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master)
        assert stage.after_step(model, step + 1, 10)["codebook/used"] > 1
    assert stage.validate(model)["held_out"] < 0.8 * before
    assert model.vq.codebook.dtype == torch.float32
    with torch.no_grad():
        assert model(stage._val[:2]).reconstruction.dtype == torch.float32
        assert stage.pictures(model)["reconstructions"].dtype == np.uint8
