"""The clock of the peers: when each step of a Transformers Trainer ended."""

from __future__ import annotations

import time

import torch
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """The time at the end of each step; a GPU is waited for at the two ends of the measured span only."""

    def __init__(self, warmup: int):
        self.warmup = warmup
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available() and state.global_step in (self.warmup, state.max_steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
