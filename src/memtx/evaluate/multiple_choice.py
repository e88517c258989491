"""Multiple choice: which continuation of a question a model holds likeliest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from memtx.adapters import Choice
from memtx.checks import require, require_positive
from memtx.data import Question
from memtx.evaluate.results import Confidence, Metric
from memtx.evaluate.scoring import TokenRow, require_memories, score
from memtx.generate import padding_token


@final
@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """What a model makes of each choice of each question.

    Args:
        questions: the questions.
        log_probs: of each question's choices, in nats.

    Source: `acc`, `acc_norm` and `acc_bytes` of lm-evaluation-harness.

    Example:
        >>> question = Question(context="Grass is", choices=["green and high", "red"], answer=0)
        >>> found = MultipleChoice(questions=[question], log_probs=[[-3.0, -2.0]])
        >>> found.accuracy, found.accuracy_norm
        (0.0, 1.0)
    """

    questions: list[Question]
    log_probs: list[list[float]]

    @property
    def accuracy(self) -> float:
        """Share of questions whose right choice is the likeliest."""
        return _share(self._right(_one))

    @property
    def accuracy_norm(self) -> float:
        """The same by log-probability per character of the choice."""
        return _share(self._right(len))

    @property
    def accuracy_bytes(self) -> float:
        """The same by log-probability per byte of the choice."""
        return _share(self._right(_bytes))

    def metrics(self, confidence: Confidence) -> dict[str, Metric]:
        """Give all three, with their intervals.

        Args:
            confidence: how intervals are made.
        """
        sizes = {"accuracy": _one, "accuracy_norm": len, "accuracy_bytes": _bytes}
        return {name: confidence.share(self._right(size)) for name, size in sizes.items()}

    def _right(self, size: Callable[[str], int]) -> list[bool]:
        right = []
        for question, log_probs in zip(self.questions, self.log_probs, strict=True):
            choices = zip(log_probs, question.choices, strict=True)
            values = [value / size(choice) for value, choice in choices]
            # The first of equals, as the harness has it.
            right.append(values.index(max(values)) == question.answer)
        return right


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def _one(_: str) -> int:
    return 1


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def multiple_choice(
    *,
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    max_length: int,
    batch_size: int,
    memories: Sequence[Choice] | None = None,
) -> MultipleChoice:
    """Score every choice of every question, behind one space.

    Args:
        model: a Hugging Face causal language model, an adapter or library of memories, or a whole
            model of memtx.
        tokenizer: its tokenizer, with the special tokens it sets.
        questions: the questions.
        max_length: tokens that are read at most; a longer context loses its beginning.
        batch_size: choices per forward; it changes no number.
        memories: what each question is asked of in a `MemoryLibrary`; None leaves that to the
            model.

    Raises:
        ValueError: if there are no questions, a size is below 1, a choice does not fit into
            `max_length`, or `memories` are named for a model that is no library, or for another
            number of questions.
    """
    require(
        ok=bool(questions),
        owner="multiple_choice",
        rule="there must be at least one question",
        got={"questions": len(questions)},
        remedy="pass questions",
    )
    require_positive(owner="multiple_choice", sizes={"max_length": max_length})
    require_memories(owner="multiple_choice", model=model, memories=memories, wanted=len(questions))
    rows: list[TokenRow] = []
    of_question: list[int] = []
    for number, question in enumerate(questions):
        for choice in question.choices:
            row = continuation_row(tokenizer, context=question.context, continuation=f" {choice}")
            rows.append(shortened(row, max_length=max_length))
            of_question.append(number)
    scored = score(
        model=model,
        rows=rows,
        batch_size=batch_size,
        fill=padding_token(tokenizer),
        memories=None if memories is None else [memories[number] for number in of_question],
    )
    log_probs: list[list[float]] = [[] for _ in questions]
    for number, each in zip(of_question, scored, strict=True):
        log_probs[number].append(each.total)
    return MultipleChoice(questions=questions, log_probs=log_probs)


def continuation_row(tokenizer: Any, *, context: str, continuation: str) -> TokenRow:
    """Tokenize a context and what follows as lm-evaluation-harness does.

    Both are tokenized together and cut behind as many tokens as the context has alone; spaces at
    the end of the context belong to the continuation. An empty context is the begin token, or the
    end token where there is none.

    Args:
        tokenizer: a Hugging Face tokenizer.
        context: the text before.
        continuation: the text that follows.
    """
    bare = context.rstrip()
    if context and bare:
        known: list[int] = tokenizer(bare, verbose=False)["input_ids"]
        whole: list[int] = tokenizer(context + continuation, verbose=False)["input_ids"]
        return whole[: len(known)], whole[len(known) :]
    ids: list[int] = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    begin = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if begin is None else begin
    require(
        ok=first is not None,
        owner="continuation_row",
        rule="a tokenizer without begin and end tokens needs a context",
        got={"context": context},
        remedy="write a context",
    )
    return ([first], ids) if ids[:1] != [first] else (ids[:1], ids[1:])


def shortened(row: TokenRow, *, max_length: int) -> TokenRow:
    """Cut the beginning off a context, so that at most `max_length` tokens are read.

    Args:
        row: the context, and what follows.
        max_length: tokens that are read at most; the last one is not.

    Raises:
        ValueError: if what follows does not fit by itself.
    """
    context, predicted = row
    require(
        ok=len(predicted) <= max_length,
        owner="multiple_choice",
        rule="what follows a context must fit into max_length",
        got={"tokens": len(predicted), "max_length": max_length},
        remedy="allow more tokens, or leave it out",
    )
    return context[-(max_length + 1 - len(predicted)) :], predicted
