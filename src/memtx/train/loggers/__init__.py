"""Where the numbers of a run go: each logger in a file of its own."""

from memtx.train.loggers.json_lines import JsonLines
from memtx.train.loggers.progress_bar import ProgressBar
from memtx.train.loggers.protocol import Logger, Record
from memtx.train.loggers.tensorboard import TensorBoard
from memtx.train.loggers.weights_and_biases import WeightsAndBiases

__all__ = ["JsonLines", "Logger", "ProgressBar", "Record", "TensorBoard", "WeightsAndBiases"]
