"""What editing did: efficacy, generalisation and specificity, as the literature defines them.

Of an edit `prompt -> target_new` (before: `target_true`) with paraphrases and neighbours:

- *Efficacy* asks the prompt, *generalisation* the paraphrases, *specificity* the neighbours.
- `score`: share of prompts where `P(target_new) > P(target_true)`; of neighbours, where the
  neighbour's own answer is likelier than `target_new` (CounterFact: ES, PS and NS of ROME).
- `magnitude`: the mean of that difference of probabilities (EM, PM and NM of ROME).
- `exact`: share of prompts to which greedy decoding gives the whole answer.
- `tokens`: share of the answer's tokens that are the likeliest, each behind the right ones (zsRE's
  accuracy in MEND and ROME).
- `unchanged`, `tokens_unchanged`: share of neighbours, and of their answers' places, where the
  likeliest tokens are those of the model before (locality in EasyEdit).

`P` is the geometric mean over an answer's tokens, as ROME's code has it, so that a longer answer
has no handicap. What an edit has several of is averaged within it first, then over edits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean, harmonic_mean
from typing import Any, final

from memtx.adapters import Choice
from memtx.checks import require
from memtx.data import Edit, Fact, fact_tokens
from memtx.evaluate.before import before_learning
from memtx.evaluate.results import Confidence, Metric
from memtx.evaluate.scoring import Scored, TokenRow, require_memories, score
from memtx.generate import padding_token


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model said to the prompts of one kind, by edit.

    Args:
        exact: share of an edit's prompts that greedy decoding answers wholly.
        tokens: share of the answers' tokens that are likeliest.
        margins: mean difference of the probabilities of the answer that should be likelier and of
            the other; empty where an edit has no `target_true`.
        scores: share of prompts where that difference is positive; empty likewise.
        unchanged: share of prompts where the likeliest tokens are those of the model before; empty
            but for neighbours.
        tokens_unchanged: share of places where they are; empty likewise.

    Source: see the module.

    Example:
        >>> Asked(exact=[1.0], tokens=[1.0], margins=[], scores=[], unchanged=[],
        ...       tokens_unchanged=[]).exact
        [1.0]
    """

    exact: list[float]
    tokens: list[float]
    margins: list[float]
    scores: list[float]
    unchanged: list[float]
    tokens_unchanged: list[float]

    def metrics(self, name: str, confidence: Confidence) -> dict[str, Metric]:
        """Give all that was measured.

        Args:
            name: comes before each name.
            confidence: how intervals are made.
        """
        found = {
            "score": self.scores,
            "magnitude": self.margins,
            "exact": self.exact,
            "tokens": self.tokens,
            "unchanged": self.unchanged,
            "tokens_unchanged": self.tokens_unchanged,
        }
        return {f"{name}_{key}": confidence.mean(each) for key, each in found.items() if each}


@final
@dataclass(frozen=True, kw_only=True)
class Editing:
    """What edits did to a model.

    Args:
        num_edits: how many were asked.
        efficacy: what it says to their prompts.
        generalisation: what it says to paraphrases; None where no edit has any.
        specificity: what it says to neighbours; None where no edit has any.

    Source: ROME (Meng et al. 2022, arXiv 2202.05262), MEND (Mitchell et al. 2022, arXiv
    2110.11309), EasyEdit (Wang et al. 2023, arXiv 2308.07269); see the module.

    Example:
        >>> said = Asked(exact=[1.0, 0.0], tokens=[1.0, 0.5], margins=[0.5, -0.1],
        ...              scores=[1.0, 0.0], unchanged=[], tokens_unchanged=[])
        >>> found = Editing(num_edits=2, efficacy=said, generalisation=None, specificity=None)
        >>> sorted(found.metrics(Confidence(level=0.95, resamples=100, seed=0)))
        ['efficacy_exact', 'efficacy_magnitude', 'efficacy_score', 'efficacy_tokens']
    """

    num_edits: int
    efficacy: Asked
    generalisation: Asked | None
    specificity: Asked | None

    @property
    def harmonic_score(self) -> float | None:
        """ROME's `S`: the harmonic mean of the three scores; None where one was not measured."""
        kinds = (self.efficacy, self.generalisation, self.specificity)
        shares = [fmean(each.scores) for each in kinds if each is not None and each.scores]
        return harmonic_mean(shares) if len(shares) == len(kinds) else None

    def metrics(self, confidence: Confidence) -> dict[str, Metric]:
        """Give all that was measured, over edits.

        Args:
            confidence: how intervals are made.
        """
        found = self.efficacy.metrics("efficacy", confidence)
        if self.generalisation is not None:
            found |= self.generalisation.metrics("generalisation", confidence)
        if self.specificity is not None:
            found |= self.specificity.metrics("specificity", confidence)
        whole = self.harmonic_score
        if whole is not None:
            found["harmonic_score"] = Metric(value=whole, num_items=self.num_edits, interval=None)
        return found


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """A prompt with the answer that should come, and the one that should not."""

    edit: int
    right: TokenRow
    wrong: TokenRow | None


def editing(
    *,
    model: Any,
    tokenizer: Any,
    edits: list[Edit],
    batch_size: int,
    base: Any | None,
    memories: Sequence[Choice] | None = None,
) -> Editing:
    """Ask for all edits, their paraphrases and their neighbours.

    Args:
        model: the model that was edited.
        tokenizer: its tokenizer, with the special tokens it sets.
        edits: the edits.
        batch_size: answers per forward; it changes no number.
        base: the model before, for `unchanged`; None switches off the memory or the LoRA of
            `model`.
        memories: what each edit is asked of in a `MemoryLibrary`; None leaves that to the model.

    Raises:
        ValueError: if there are no edits, `batch_size` is below 1, `base` is part of `model`, or is
            None and nothing of `model` can be switched off, or `memories` are named for a model
            that is no library, or for another number of edits.
    """
    require(
        ok=bool(edits),
        owner="editing",
        rule="there must be at least one edit",
        got={"edits": len(edits)},
        remedy="pass edits",
    )
    require_memories(owner="editing", model=model, memories=memories, wanted=len(edits))
    asked = _asks(tokenizer, edits)
    settings = {"batch_size": batch_size, "fill": padding_token(tokenizer)}
    flat = [each for kind in asked.values() for each in kind]
    rows, of_edit = _rows(flat)
    scored = iter(
        score(
            model=model,
            rows=rows,
            memories=None if memories is None else [memories[edit] for edit in of_edit],
            **settings,
        )
    )
    said = {name: [_next(each, scored) for each in kind] for name, kind in asked.items()}
    before: list[Scored] = []
    if asked["specificity"]:
        with before_learning(owner="editing", model=model, base=base) as earlier:
            neighbours = [each.right for each in asked["specificity"]]
            before = score(model=earlier, rows=neighbours, memories=None, **settings)
    kinds = {
        name: _summary(asked[name], said[name], before if name == "specificity" else [])
        for name in asked
        if asked[name]
    }
    return Editing(
        num_edits=len(edits),
        efficacy=kinds["efficacy"],
        generalisation=kinds.get("generalisation"),
        specificity=kinds.get("specificity"),
    )


def _asks(tokenizer: Any, edits: list[Edit]) -> dict[str, list[_Ask]]:
    def ask(edit: int, *, prompt: str, right: str, wrong: str | None) -> _Ask:
        return _Ask(
            edit=edit,
            right=fact_tokens(tokenizer, Fact(prompt=prompt, answer=right)),
            wrong=None
            if wrong is None
            else fact_tokens(tokenizer, Fact(prompt=prompt, answer=wrong)),
        )

    numbered = list(enumerate(edits))
    return {
        "efficacy": [
            ask(n, prompt=each.prompt, right=each.target_new, wrong=each.target_true)
            for n, each in numbered
        ],
        "generalisation": [
            ask(n, prompt=prompt, right=each.target_new, wrong=each.target_true)
            for n, each in numbered
            for prompt in each.paraphrases
        ],
        "specificity": [
            ask(n, prompt=fact.prompt, right=fact.answer, wrong=each.target_new)
            for n, each in numbered
            for fact in each.neighbours
        ],
    }


def _rows(asks: list[_Ask]) -> tuple[list[TokenRow], list[int]]:
    rows, of_edit = [], []
    for each in asks:
        for row in (each.right, each.wrong):
            if row is not None:
                rows.append(row)
                of_edit.append(each.edit)
    return rows, of_edit


def _next(ask: _Ask, scored: Any) -> tuple[Scored, Scored | None]:
    return next(scored), None if ask.wrong is None else next(scored)


def _summary(
    asks: list[_Ask], said: list[tuple[Scored, Scored | None]], before: list[Scored]
) -> Asked:
    """Average within each edit; the order of edits stays."""
    margins = [None if b is None else exp(a.mean) - exp(b.mean) for a, b in said]
    # By log-probabilities, which differ where both probabilities are as good as 0.
    wins = [None if b is None else float(a.mean > b.mean) for a, b in said]
    pairs = list(zip((right for right, _ in said), before, strict=False))
    same = [
        [float(x == y) for x, y in zip(now.likeliest, was.likeliest, strict=True)]
        for now, was in pairs
    ]

    def by_edit(values: Sequence[float | None]) -> list[float]:
        held: dict[int, list[float]] = {}
        for ask, value in zip(asks, values, strict=True):
            if value is not None:
                held.setdefault(ask.edit, []).append(value)
        return [fmean(each) for each in held.values()]

    return Asked(
        exact=by_edit([float(right.is_greedy) for right, _ in said]),
        tokens=by_edit([right.token_accuracy for right, _ in said]),
        margins=by_edit(margins),
        scores=by_edit(wins),
        unchanged=by_edit([float(all(each)) for each in same]) if before else [],
        tokens_unchanged=by_edit([fmean(each) for each in same]) if before else [],
    )
