"""Training, on torch.distributed alone."""

from memtx.train.checkpoints import Checkpoints
from memtx.train.groups import ParameterGroup
from memtx.train.loggers import JsonLines, Logger, ProgressBar
from memtx.train.optimizer import AdamW, WarmupCosine
from memtx.train.parallel import DataParallel, SingleProcess, launched, rows_per_process
from memtx.train.precision import BFloat16Autocast, FullPrecision
from memtx.train.terms import LocalityLoss, NextTokenLoss, Objective
from memtx.train.trainer import Trainer

__all__ = [
    "AdamW",
    "BFloat16Autocast",
    "Checkpoints",
    "DataParallel",
    "FullPrecision",
    "JsonLines",
    "LocalityLoss",
    "Logger",
    "NextTokenLoss",
    "Objective",
    "ParameterGroup",
    "ProgressBar",
    "SingleProcess",
    "Trainer",
    "WarmupCosine",
    "launched",
    "rows_per_process",
]
