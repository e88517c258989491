"""What a model knows, and what teaching did to the rest."""

from memtx.evaluate.during import FactEvaluation
from memtx.evaluate.perplexity import TextLoss, text_loss
from memtx.evaluate.recall import Recall, recall

__all__ = ["FactEvaluation", "Recall", "TextLoss", "recall", "text_loss"]
