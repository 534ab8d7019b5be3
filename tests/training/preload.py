"""Imported once by the process that test ranks are forked from: what DeepSpeed and the stages would import at their first use."""

import os

os.environ.setdefault("DS_ACCELERATOR_LOG", "error")
import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import torch.utils.flop_counter  # noqa: F401
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3  # noqa: F401
from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: F401
