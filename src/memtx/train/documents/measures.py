"""What a model makes of a text, of background, and of beginnings of passages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from memtx.checks import require_positive
from memtx.data import begin_tokens, pieces_of
from memtx.data.contexts import Reading
from memtx.evaluate import Scored, score
from memtx.evaluate.windows import StridedWindows
from memtx.generate import greedy, padding_token


@final
@dataclass(frozen=True, kw_only=True)
class Passage:
    """A passage of the text, and how the model goes on behind its beginning.

    Args:
        prompt: its beginning.
        wanted: how the text goes on.
        answer: how the model does, greedily.
        correct: how many tokens are right before the first wrong one.
        num_tokens: of the continuation.

    Source: verbatim recall, as memorisation is measured (Carlini et al. 2023, arXiv 2202.07646).

    Example:
        >>> Passage(prompt="Speak,", wanted="speak.", answer="now.", correct=0, num_tokens=2).answer
        'now.'
    """

    prompt: str
    wanted: str
    answer: str
    correct: int
    num_tokens: int


@final
@dataclass(frozen=True, kw_only=True)
class Measures:
    """What was measured of a model as it is.

    Args:
        text_loss: on the text read afresh, in nats per token.
        text_accuracy: share of its tokens that the model holds likeliest, behind the right ones.
        background_loss: on background that was kept aside, in nats per token.
        passages: how it goes on behind beginnings of passages.

    Source: memtx's own.

    Example:
        >>> Measures(
        ...     text_loss=1.0, text_accuracy=0.5, background_loss=2.0, passages=[]).text_loss
        1.0
    """

    text_loss: float
    text_accuracy: float
    background_loss: float
    passages: list[Passage]


def passages_of(
    tokenizer: Any, documents: list[str], *, num_passages: int, prompt: int, answer: int
) -> list[Reading]:
    """Give beginnings of passages at even distances in the text, and how it goes on, as tokens.

    Args:
        tokenizer: of the base.
        documents: the texts.
        num_passages: how many at most.
        prompt: tokens of a beginning.
        answer: tokens of what follows.

    Raises:
        ValueError: if a size is below 1.
    """
    require_positive(
        owner="passages_of",
        sizes={"num_passages": num_passages, "prompt": prompt, "answer": answer},
    )
    pieces = pieces_of(tokenizer, documents, length=prompt + answer)
    whole = [piece for piece in pieces if len(piece) == prompt + answer]
    count = min(num_passages, len(whole))
    chosen = [whole[number * len(whole) // count] for number in range(count)]
    return [(piece[:prompt], piece[prompt:]) for piece in chosen]


def measures(
    model: Any,
    *,
    tokenizer: Any,
    documents: list[str],
    held_out: Sequence[list[int]],
    passages: Sequence[Reading],
    length: int,
    batch_size: int,
) -> Measures:
    """Measure a model as it is: with its memory, or while that is switched off.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        documents: the text, read in windows of `length` tokens that overlap by half.
        held_out: rows of background.
        passages: beginnings, and how the text goes on.
        length: tokens of a window.
        batch_size: rows at a time; it changes no number.

    Raises:
        ValueError: if there is nothing to predict.
    """
    fill, prefix = padding_token(tokenizer), begin_tokens(tokenizer)
    windows = StridedWindows(max_length=length, stride=length // 2)
    pieces = pieces_of(tokenizer, documents, length=2**62)
    rows = [row for piece in pieces for row in windows([*prefix, *piece])]
    text = score(model=model, rows=rows, batch_size=batch_size, fill=fill, memories=None)
    other = score(
        model=model,
        rows=[(row[:1], row[1:]) for row in held_out if len(row) > 1],
        batch_size=batch_size,
        fill=fill,
        memories=None,
    )
    hits = sum(round(each.token_accuracy * len(each.tokens)) for each in text)
    return Measures(
        text_loss=_per_token(text),
        text_accuracy=hits / sum(len(each.tokens) for each in text),
        background_loss=_per_token(other),
        passages=_answers(
            model, tokenizer=tokenizer, passages=passages, prefix=prefix, batch_size=batch_size
        ),
    )


def _per_token(scored: Sequence[Scored]) -> float:
    return -sum(each.total for each in scored) / sum(len(each.tokens) for each in scored)


def _answers(
    model: Any,
    *,
    tokenizer: Any,
    passages: Sequence[Reading],
    prefix: list[int],
    batch_size: int,
) -> list[Passage]:
    if not passages:
        return []
    given = greedy(
        model=model,
        prompts=[[*prefix, *prompt] for prompt, _ in passages],
        max_new_tokens=max(len(wanted) for _, wanted in passages),
        batch_size=batch_size,
        pad_token_id=padding_token(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    return [
        Passage(
            prompt=tokenizer.decode(prompt),
            wanted=tokenizer.decode(wanted),
            answer=tokenizer.decode(answer[: len(wanted)]),
            correct=_agreeing(answer, wanted),
            num_tokens=len(wanted),
        )
        for (prompt, wanted), answer in zip(passages, given, strict=True)
    ]


def _agreeing(answer: list[int], wanted: list[int]) -> int:
    """Count the tokens before the first that differs."""
    pairs = list(zip(answer, wanted, strict=False))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
