"""Exact recall of facts."""

from dataclasses import dataclass
from typing import Any, final

from memtx.checks import require
from memtx.data import Fact, fact_tokens
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


def recall(*, model: Any, tokenizer: Any, facts: list[Fact], batch_size: int) -> Recall:
    """Ask every fact's prompt and count the greedy answers that are exact.

    Args:
        model: a Hugging Face causal language model or a `MemoryAdapter`.
        tokenizer: its tokenizer.
        facts: the facts to ask.
        batch_size: prompts per call.

    Raises:
        ValueError: if there are no facts.
    """
    require(
        ok=bool(facts),
        owner="recall",
        rule="there must be at least one fact to ask",
        got={"facts": len(facts)},
        remedy="pass facts",
    )
    pairs = [fact_tokens(tokenizer, fact) for fact in facts]
    answers = greedy(
        model=model,
        prompts=[prompt for prompt, _ in pairs],
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
