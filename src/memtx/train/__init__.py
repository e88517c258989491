"""Training, on torch.distributed alone."""

from memtx.train.bank_optimizer import BankRows, RowAdagrad, RowAdam, RowSGD
from memtx.train.best_checkpoint import BestCheckpoint
from memtx.train.callbacks import Better, EarlyStopping, ExplodingLoss, Higher, Lower
from memtx.train.checkpoints import Checkpoints
from memtx.train.data_parallel import DataParallel
from memtx.train.distillation import DistillationLoss
from memtx.train.fully_sharded import FullyShardedDataParallel
from memtx.train.groups import ParameterGroup, group_table
from memtx.train.hidden import WithoutTokens
from memtx.train.identity import digest
from memtx.train.loggers import JsonLines, Logger, ProgressBar, TensorBoard, WeightsAndBiases
from memtx.train.optimizer import SGD, Adam, AdamW, AdamW8bit, Optimizer
from memtx.train.parallel import SingleProcess, rows_per_process
from memtx.train.precision import BFloat16Autocast, Float16Autocast, FullPrecision, Precision
from memtx.train.processes import launched, launched_sharded
from memtx.train.rate_finder import RateTest, find_learning_rate
from memtx.train.recomputation import RecomputedBase, RecomputedLayers
from memtx.train.revival import ReviveDead
from memtx.train.router_health import Remedy, RouterHealth
from memtx.train.run import Callback, Guard, Patient, Run, Saver, Start, Surrounding
from memtx.train.run_checkpoints import RunCheckpoints
from memtx.train.schedules import (
    DelayedCosine,
    DelayedLinear,
    Schedule,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)
from memtx.train.sparse_gradients import SparseBankGradients, sparse_bank_gradients
from memtx.train.start import Fresh, InitFrom, Resume, ResumeIfAny
from memtx.train.terms import LocalityLoss, NextTokenLoss, Objective
from memtx.train.throughput import PeakMemory, Utilisation, known_peak
from memtx.train.trainer import Evaluation, Trainer
from memtx.train.units import LayersAsUnits, ModulesAsUnits
from memtx.train.written import WrittenTokens, tokens_of_chapters

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AdamW8bit",
    "BFloat16Autocast",
    "BankRows",
    "BestCheckpoint",
    "Better",
    "Callback",
    "Checkpoints",
    "DataParallel",
    "DelayedCosine",
    "DelayedLinear",
    "DistillationLoss",
    "EarlyStopping",
    "Evaluation",
    "ExplodingLoss",
    "Float16Autocast",
    "Fresh",
    "FullPrecision",
    "FullyShardedDataParallel",
    "Guard",
    "Higher",
    "InitFrom",
    "JsonLines",
    "LayersAsUnits",
    "LocalityLoss",
    "Logger",
    "Lower",
    "ModulesAsUnits",
    "NextTokenLoss",
    "Objective",
    "Optimizer",
    "ParameterGroup",
    "Patient",
    "PeakMemory",
    "Precision",
    "ProgressBar",
    "RateTest",
    "RecomputedBase",
    "RecomputedLayers",
    "Remedy",
    "Resume",
    "ResumeIfAny",
    "ReviveDead",
    "RouterHealth",
    "RowAdagrad",
    "RowAdam",
    "RowSGD",
    "Run",
    "RunCheckpoints",
    "Saver",
    "Schedule",
    "SingleProcess",
    "SparseBankGradients",
    "Start",
    "Surrounding",
    "TensorBoard",
    "Trainer",
    "Utilisation",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "WeightsAndBiases",
    "WithoutTokens",
    "WrittenTokens",
    "digest",
    "find_learning_rate",
    "group_table",
    "known_peak",
    "launched",
    "launched_sharded",
    "rows_per_process",
    "sparse_bank_gradients",
    "tokens_of_chapters",
]
