"""What a model knows, and what teaching did to the rest."""

from memtx.evaluate.during import FactEvaluation, TextEvaluation
from memtx.evaluate.editing import Asked, Editing, editing
from memtx.evaluate.flops import ForwardFlops, TrainingFlops, forward_flops, training_flops
from memtx.evaluate.forgetting import Forgetting, forgetting
from memtx.evaluate.multiple_choice import MultipleChoice, multiple_choice
from memtx.evaluate.perplexity import Perplexity, TextLoss, perplexity, text_loss
from memtx.evaluate.plan import plan
from memtx.evaluate.recall import Recall, recall
from memtx.evaluate.results import Confidence, EvaluationResult, Interval, Metric, table
from memtx.evaluate.scoring import Scored, score
from memtx.evaluate.seeds import SeedSummary, Spread, over_seeds
from memtx.evaluate.windows import RollingWindows, StridedWindows, Windows

__all__ = [
    "Asked",
    "Confidence",
    "Editing",
    "EvaluationResult",
    "FactEvaluation",
    "Forgetting",
    "ForwardFlops",
    "Interval",
    "Metric",
    "MultipleChoice",
    "Perplexity",
    "Recall",
    "RollingWindows",
    "Scored",
    "SeedSummary",
    "Spread",
    "StridedWindows",
    "TextEvaluation",
    "TextLoss",
    "TrainingFlops",
    "Windows",
    "editing",
    "forgetting",
    "forward_flops",
    "multiple_choice",
    "over_seeds",
    "perplexity",
    "plan",
    "recall",
    "score",
    "table",
    "text_loss",
    "training_flops",
]
