"""Exact recall of facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from memtx.adapters import Choice
from memtx.checks import require, require_positive
from memtx.data import Fact, fact_tokens
from memtx.evaluate.results import Confidence, Metric
from memtx.evaluate.scoring import reading, require_memories
from memtx.generate import greedy, padding_token


@final
@dataclass(frozen=True, kw_only=True)
class Recall:
    """How many facts a model answered exactly, and what it said.

    Args:
        num_facts: how many were asked.
        num_recalled: how many greedy continuations began with all tokens of the answer.
        answers: what the model said to each prompt.

    Source: efficacy of knowledge editing by greedy decoding, the strict form.

    Example:
        >>> Recall(num_facts=2, num_recalled=1, answers=["Paris", "no"]).num_recalled
        1
    """

    num_facts: int
    num_recalled: int
    answers: list[str]

    def metrics(self, confidence: Confidence) -> dict[str, Metric]:
        """Give the share recalled, with its interval.

        Args:
            confidence: how intervals are made.
        """
        flags = [number < self.num_recalled for number in range(self.num_facts)]
        return {"recall": confidence.share(flags)}


def recall(
    *,
    model: Any,
    tokenizer: Any,
    facts: list[Fact],
    batch_size: int,
    memories: Sequence[Choice] | None = None,
) -> Recall:
    """Ask every fact's prompt and count the greedy answers that are exact.

    Args:
        model: a Hugging Face causal language model, an adapter or library of memories, or a whole
            model of memtx.
        tokenizer: its tokenizer.
        facts: the facts to ask.
        batch_size: prompts per call.
        memories: what each fact is asked of in a `MemoryLibrary`; None leaves that to the model.

    Raises:
        ValueError: if there are no facts, one lacks prompt or answer, `batch_size` is below 1, or
            `memories` are named for a model that is no library, or for another number of facts.
    """
    require(
        ok=bool(facts),
        owner="recall",
        rule="there must be at least one fact to ask",
        got={"facts": len(facts)},
        remedy="pass facts",
    )
    require_positive(owner="recall", sizes={"batch_size": batch_size})
    require_memories(owner="recall", model=model, memories=memories, wanted=len(facts))
    pairs = [fact_tokens(tokenizer, fact) for fact in facts]
    bare = [
        number
        for number, (fact, (prompt, answer)) in enumerate(zip(facts, pairs, strict=True))
        if not fact.answer.strip() or not prompt or not answer
    ]
    require(
        ok=not bare,
        owner="recall",
        rule="every fact must have a prompt and an answer that are not empty",
        got={"facts without": bare[:5]},
        remedy="leave them out: any model would know an empty answer",
    )
    answers: list[list[int]] = []
    for start in range(0, len(pairs), batch_size):
        rows = range(start, min(start + batch_size, len(pairs)))
        with reading(model, memories, rows=rows):
            answers += greedy(
                model=model,
                prompts=[pairs[row][0] for row in rows],
                max_new_tokens=max(len(answer) for _, answer in pairs) + 1,
                batch_size=batch_size,
                pad_token_id=padding_token(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
            )
    exact = sum(
        given[: len(answer)] == answer for given, (_, answer) in zip(answers, pairs, strict=True)
    )
    return Recall(
        num_facts=len(facts),
        num_recalled=exact,
        answers=[tokenizer.decode(given).strip() for given in answers],
    )
