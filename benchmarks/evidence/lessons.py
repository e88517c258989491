"""How facts are taught to a learner, and what is measured of it afterwards."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.clocks import forget_peak, peak_gib
from benchmarks.evidence import small_llama
from benchmarks.evidence.methods import Learner, Rates
from benchmarks.evidence.rivals import HeldToCopy
from benchmarks.evidence.texts import domains
from benchmarks.records import Record
from memtx.data import Batches, Edit, EditFields, FactRows, TextRows, fact_tokens, read_edits
from memtx.evaluate import Editing, Forgetting, StridedWindows, editing, forgetting
from memtx.generate import padding_token
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    Callback,
    Fresh,
    FullPrecision,
    LocalityLoss,
    NextTokenLoss,
    Objective,
    SingleProcess,
    Trainer,
    WarmupCosine,
    WrittenTokens,
)
from memtx.train.terms import Term
from memtx.usage.particular import most_particular, read_counts

FIELDS = {
    "counterfact": EditFields(
        prompt="prompt",
        target_new="target_new",
        target_true="ground_truth",
        paraphrases="rephrase_prompt",
        neighbours="locality_prompt",
        neighbour_answers="locality_ground_truth",
    ),
    "zsre": EditFields(
        prompt="src",
        target_new="alt",
        target_true="answers",
        paraphrases="rephrase",
        neighbours="loc",
        neighbour_answers="loc_ans",
    ),
}
# Rows of a step: about as many tokens of background as of facts. The small Llama learns on a CPU,
# where a step costs what it reads; on a GPU a small step costs as much as a large one.
BACKGROUND_PER_STEP = {"small-llama": 8, "own": 24}
BACKGROUND_LENGTH = 96
# One document in so many of a base's own training is background.
THINNED = 4
# Tokens of a window of text that is measured, and how many documents are.
WINDOW = 256
MEASURED = 10
# Rows from which the slots of a sparse memory are chosen, and reads that count of a token.
COUNTED, KEPT = 40, 8


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A base, text that it should keep, text to measure that on, and facts."""

    base: Any
    tokenizer: Any
    # Rows of text: to be held to, and to choose the slots of a sparse memory by.
    background: TextRows
    background_per_step: int
    held_out: list[str]
    facts: dict[str, list[Edit]]
    device: torch.device


def name_of(base: str) -> str:
    """Give what records call a base: its folder may lie anywhere."""
    return "small-llama" if base == "small-llama" else "own"


def bench_of(data: Path, *, base: str) -> Bench:
    """Load a base by its folder, or the small Llama of a folder of data."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if base == "small-llama":
        model, tokenizer = small_llama.load(data)
        background, held_out = small_llama.stories(data)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base)
        texts = domains(data)
        background = [text for each in texts for text in each.training[::THINNED]]
        held_out = [text for each in texts for text in each.held_out[:MEASURED]]
    facts = {
        name: read_edits(path, fields)
        for name, fields in FIELDS.items()
        if (path := data / "facts" / f"{name}-1k.json").is_file()
    }
    return Bench(
        base=model.to(device).eval(),
        tokenizer=tokenizer,
        background=TextRows(documents=background, tokenizer=tokenizer, length=BACKGROUND_LENGTH),
        background_per_step=BACKGROUND_PER_STEP[name_of(base)],
        held_out=held_out,
        facts=facts,
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How long and how fast a learner is taught, and how strongly it is held to the base."""

    steps: int
    facts_per_step: int
    rates: Rates
    # 0.0 protects nothing: as users run what they teach with.
    locality_weight: float
    seed: int


def particular(
    learner: Learner, bench: Bench, edits: list[Edit], *, number: int, used: Sequence[int]
) -> list[int]:
    """Choose the slots that facts read most and background seldom, besides those in use."""
    if learner.bank is None:
        raise ValueError("particular: only a memory has slots, got bank=None; ask for no others.")
    asked = [fact_tokens(bench.tokenizer, edit.fact) for edit in edits[:COUNTED]]
    new = read_counts(
        learner.model, bank=learner.bank, rows=[[*p, *a] for p, a in asked], kept=KEPT
    )
    text = bench.background
    # Rows from all over the background.
    others = [text[n]["input_ids"] for n in range(0, len(text), max(1, len(text) // COUNTED))]
    old = read_counts(learner.model, bank=learner.bank, rows=others[:COUNTED], kept=KEPT)
    new[:, list(used)] = 0.0
    found = most_particular(bank=learner.bank, new=new, background=old, num_tokens=number)
    # Facts may read fewer slots: then any that are free.
    taken = {*found, *used, *range(learner.bank.num_sinks)}
    free = [n for n in range(learner.bank.num_memory_tokens) if n not in taken]
    return sorted(found + free[: number - len(found)])


def trainer_of(
    learner: Learner, bench: Bench, edits: list[Edit], *, lesson: Lesson, written: list[int] | None
) -> Trainer:
    """Compose the teaching."""
    fill = padding_token(bench.tokenizer)
    terms: list[Term] = [NextTokenLoss(name="facts", stream="facts", weight=1.0, chunk=4096)]
    rows = FactRows(facts=[edit.fact for edit in edits], tokenizer=bench.tokenizer)
    size = min(lesson.facts_per_step, len(rows))
    streams = {"facts": Batches(rows=rows, batch_size=size, seed=lesson.seed, pad_token_id=fill)}
    if lesson.locality_weight:
        held = {"name": "locality", "stream": "text", "weight": lesson.locality_weight}
        terms.append(
            LocalityLoss(**held, chunk=4096)
            if learner.before is None
            else HeldToCopy(**held, before=learner.before)
        )
        streams["text"] = Batches(
            rows=bench.background,
            batch_size=bench.background_per_step,
            seed=lesson.seed + 1,
            pad_token_id=fill,
        )
    callbacks: list[Callback] = []
    if written is not None and learner.bank is not None:
        callbacks.append(WrittenTokens(bank=learner.bank, tokens=written))
    steps = lesson.steps
    return Trainer(
        objective=Objective(model=learner.model, terms=terms),
        streams=streams,
        groups=learner.groups(lesson.rates),
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=min(20, steps // 10), total_steps=steps, floor=0.0),
        precision=BFloat16Autocast() if bench.device.type == "cuda" else FullPrecision(),
        parallelism=SingleProcess(device=bench.device),
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=callbacks,
        checkpoints=[],
        loggers=[],
    )


def teach(
    learner: Learner, bench: Bench, edits: list[Edit], *, lesson: Lesson, written: list[int] | None
) -> Record:
    """Teach, and give what it took."""
    trainer = trainer_of(learner, bench, edits, lesson=lesson, written=written)
    forget_peak(bench.device)
    started = time.perf_counter()
    records = trainer.run()
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_gib": peak_gib(bench.device),
        "last_loss": records[-1]["loss"],
    }


def asked(learner: Learner, bench: Bench, edits: list[Edit]) -> Editing:
    """Ask for facts, their paraphrases and their neighbours."""
    return editing(
        model=learner.model,
        tokenizer=bench.tokenizer,
        edits=edits,
        batch_size=200,
        base=learner.before,
    )


def forgotten(learner: Learner, bench: Bench) -> Forgetting:
    """Compare with the base on held-out text."""
    return forgetting(
        model=learner.model,
        tokenizer=bench.tokenizer,
        documents=bench.held_out,
        windows=StridedWindows(max_length=WINDOW, stride=WINDOW),
        batch_size=32,
        base=learner.before,
    )


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def measured(learner: Learner, bench: Bench, edits: list[Edit]) -> Record:
    """Measure what was learned, and what it cost the rest."""
    found, cost = asked(learner, bench, edits), forgotten(learner, bench)
    said, near = found.generalisation, found.specificity
    return {
        "recall": fmean(found.efficacy.exact),
        "paraphrase": mean(said.exact) if said else None,
        "locality": mean(near.unchanged) if near else None,
        "efficacy_score": mean(found.efficacy.scores),
        "paraphrase_score": mean(said.scores) if said else None,
        "locality_score": mean(near.scores) if near else None,
        "background_loss": cost.loss,
        "background_loss_rise": cost.loss_rise,
        "background_perplexity_rise": math.expm1(cost.loss_rise),
        "background_kl": cost.kl,
        "background_agreement": cost.agreement,
        "trainable_parameters": learner.trainable,
    }
