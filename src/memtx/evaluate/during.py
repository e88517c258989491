"""Measurements that a training run repeats."""

from typing import Any, final

from memtx.checks import require_positive
from memtx.data import Fact
from memtx.evaluate.recall import recall


@final
class FactEvaluation:
    """The share of facts recalled exactly, every so many steps.

    Args:
        model: a Hugging Face causal language model or a `MemoryAdapter`.
        tokenizer: its tokenizer.
        facts: the facts to ask.
        batch_size: prompts per call.
        every: steps between measurements.

    Raises:
        ValueError: if `batch_size` or `every` is below 1.

    Source: efficacy of knowledge editing, measured during training.

    Example:
        >>> FactEvaluation(model=None, tokenizer=None, facts=[], batch_size=1, every=100).every
        100
    """

    def __init__(
        self, *, model: Any, tokenizer: Any, facts: list[Fact], batch_size: int, every: int
    ) -> None:
        require_positive(owner=self, sizes={"batch_size": batch_size, "every": every})
        self.model = model
        self.tokenizer = tokenizer
        self.facts = facts
        self.batch_size = batch_size
        self.every = every

    def measure(self) -> dict[str, float]:
        """Ask the facts now: `recall` from 0 to 1."""
        result = recall(
            model=self.model,
            tokenizer=self.tokenizer,
            facts=self.facts,
            batch_size=self.batch_size,
        )
        return {"recall": result.num_recalled / result.num_facts}
