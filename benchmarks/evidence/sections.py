"""Tables of docs/evidence.md, and what the goals came to, from records alone."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from benchmarks.evidence.figures import grouped, spread
from benchmarks.records import Record

BASES = {"own": "the base trained by memtx", "small-llama": "the small Llama"}
MEMORIES = ("memory-dense", "memory-sharp", "memory-routed", "memory-sparse")


def row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def heads(names: Sequence[str]) -> Iterator[str]:
    yield ""
    yield row(names)
    yield "|" + "---|" * len(names)


def told(values: Sequence[float | None], *, digits: int) -> str:
    """Write a mean with its spread, or a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, wide = spread(known)
    return f"{mean:.{digits}f}" + (f" ± {wide:.{digits}f}" if len(known) > 1 else "")


def protection(protected: bool) -> str:
    return "protected" if protected else "as users run it"


def base(records: list[Record]) -> Iterator[str]:
    """Write what the base is, and its loss by domain."""
    training = next(r for r in records if r["case"] == "training")
    yield (
        f"\nA Qwen2 of {training['parameters']:,} parameters, trained in {training['steps']:,} "
        f"steps over {training['training_tokens']:,} tokens ({training['epochs']:.1f} times) in "
        f"{training['seconds']['training']:.0f} seconds. Held-out text:"
    )
    yield from heads(["domain", "tokens", "loss", "perplexity", "bits per byte"])
    for r in records:
        if r["case"] != "training":
            numbers = [f"{r[key]:.3f}" for key in ("loss", "perplexity", "bits_per_byte")]
            yield row([r["case"], f"{r['tokens']:,}", *numbers])


COLUMNS = (
    ("recall", "recall", 3),
    ("paraphrase", "paraphrase", 3),
    ("locality", "locality", 3),
    ("forgetting", "background_loss_rise", 4),
    ("KL", "background_kl", 4),
    ("seconds", "seconds", 1),
    ("GiB", "peak_gib", 2),
)


def injection(records: list[Record]) -> Iterator[str]:
    """Write the goals, what was taught, and the sweep."""
    yield (
        "\n`recall`, `paraphrase`: share of prompts to which greedy decoding gives the whole new "
        "answer. `locality`: share of neighbours whose answer is as before. Seconds are of "
        "training while as many runs as `processes` says shared the machine."
    )
    taught = [r for r in records if r["stage"] == "teach"]
    yield from goals(taught)
    for (of, data, facts), runs in grouped(
        taught, by=lambda r: (r["base"], r["source"], r["facts"])
    ).items():
        yield f"\n### {facts:,} facts of {data}, {BASES[of]}"
        yield from heads(["method", "", "trained", *(name for name, _, _ in COLUMNS), "seeds"])
        for (method, held), same in grouped(
            runs, by=lambda r: (r["method"], r["protected"])
        ).items():
            cells = [told([r[key] for r in same], digits=n) for _, key, n in COLUMNS]
            trained = f"{same[0]['trainable_parameters']:,}"
            yield row([f"`{method}`", protection(held), trained, *cells, len(same)])
    yield from sweep([r for r in records if r["stage"] == "sweep"])


def sweep(records: list[Record]) -> Iterator[str]:
    """Write every rate that was tried; what was chosen is bold."""
    from benchmarks.evidence.injection import chosen

    for of, runs in grouped(records, by=lambda r: r["base"]).items():
        facts = runs[0]["facts"]
        yield f"\n### The sweep: {facts} facts of counterfact, {BASES[of]}"
        yield (
            "\nRecall, and forgetting behind the stroke, at each rate. Bold was chosen; a star "
            "says that it is the least or the greatest that was tried."
        )
        for weight, same in grouped(runs, by=lambda r: r["locality_weight"]).items():
            held = "No protection" if not weight else f"Locality term of weight {weight:g}"
            yield f"\n{held}:"
            most = max(len(each) for each in grouped(same, by=lambda r: r["method"]).values())
            yield from heads(["method", *(f"rate {n + 1}" for n in range(most))])
            for method, tried in grouped(same, by=lambda r: r["method"]).items():
                best = chosen(runs, method=method, protected=bool(weight))
                cells = []
                rates = sorted(r["learning_rate"] for r in tried)
                for r in sorted(tried, key=lambda r: r["learning_rate"]):
                    text = f"{r['recall']:.2f} / {r['background_loss_rise']:.3f}"
                    mark = "**" if r["run"] == best["run"] else ""
                    last = mark and r["learning_rate"] in {rates[0], rates[-1]}
                    cells.append(f"{r['learning_rate']:g}: {mark}{text}{mark}{' *' * bool(last)}")
                yield row([f"`{method}`", *cells, *["-"] * (most - len(cells))])


def goals(taught: list[Record]) -> Iterator[str]:
    """Write whether a memory reached what was aimed at, and by how much it fell short."""

    def of(method: str, *, held: bool, key: str, runs: list[Record]) -> float | None:
        found = [r[key] for r in runs if (r["method"], r["protected"]) == (method, held)]
        return fmean(found) if found else None

    for base_name, all_runs in grouped(taught, by=lambda r: r["base"]).items():
        most = max(r["facts"] for r in all_runs)
        runs = [r for r in all_runs if r["facts"] == most and r["source"] == "counterfact"]
        numbers = {
            (held, key): of("lora", held=held, key=key, runs=runs)
            for held in (False, True)
            for key in ("recall", "background_loss_rise")
        }
        if any(value is None for value in numbers.values()):
            continue
        yield f"\n### The goal: {most:,} facts of counterfact, {BASES[base_name]}\n"
        yield (
            "At least LoRA's recall, at most a fifth of the forgetting of LoRA as users run it, "
            "and at most half of that of protected LoRA."
        )
        names = ["memory, protected", "recall over LoRA's", "over plain LoRA", "over held LoRA", ""]
        yield from heads(names)
        for method in MEMORIES:
            recall = of(method, held=True, key="recall", runs=runs)
            rise = of(method, held=True, key="background_loss_rise", runs=runs)
            if recall is None or rise is None:
                continue
            ahead = recall - max(numbers[False, "recall"] or 0, numbers[True, "recall"] or 0)
            one, two = (numbers[held, "background_loss_rise"] or 0.0 for held in (False, True))
            # Where LoRA learned or forgot nothing there is nothing to compare with.
            compared = recall > 0.0 and one > 0.0 and two > 0.0
            reached = compared and ahead >= 0.0 and rise <= one / 5 and rise <= two / 2
            shares = [f"{rise / each:.3f}" if each > 0.0 else "-" for each in (one, two)]
            verdict = "reached" if reached else "**not reached**" if compared else "-"
            yield row([f"`{method}`", f"{ahead:+.3f}", *shares, verdict])


def continual(records: list[Record]) -> Iterator[str]:
    """Write what is left when the last batch is in."""
    for of, runs in grouped(records, by=lambda r: r["base"]).items():
        first = runs[0]
        yield f"\n### {first['batches']} batches of {first['facts']} facts, {BASES[of]}"
        names = ["method", "", "first batch", "last batch", "all", "forgetting", "seconds", "seeds"]
        yield from heads(names)
        for (method, held), same in grouped(
            runs, by=lambda r: (r["method"], r["protected"])
        ).items():
            cells = [
                told([r["recall_after"][-1][0] for r in same], digits=3),
                told([r["recall_after"][-1][-1] for r in same], digits=3),
                told([r["recall"] for r in same], digits=3),
                told([r["background_loss_rise"] for r in same], digits=4),
                told([r["seconds"] for r in same], digits=1),
            ]
            yield row([f"`{method}`", protection(held), *cells, len(same)])


def best_rates(records: list[Record]) -> list[Record]:
    """Keep each stack's runs at the rate at which its mean loss is least."""
    kept: list[Record] = []
    for runs in grouped(records, by=lambda r: r["method"]).values():
        rates = grouped(runs, by=lambda r: r["learning_rate"]).values()
        kept += min(rates, key=lambda same: fmean(r["held_out"] for r in same))
    return kept


def chapters(records: list[Record]) -> Iterator[str]:
    """Write final losses, and whether a routed stack is ahead beyond the seeds' spread."""
    names = ["stack", "bank", "parameters", "MFLOPs per token", "rate", "held-out loss", "seeds"]
    yield from heads(names)
    for (_, rate), same in grouped(records, by=lambda r: (r["method"], r["learning_rate"])).items():
        one = same[0]
        yield row(
            [
                f"`{one['method']}`",
                f"{one['bank_tokens']:,}",
                f"{one['parameters']:,}",
                f"{one['flops_per_token'] / 1e6:.1f}",
                f"{rate:g}",
                told([r["held_out"] for r in same], digits=4),
                len(same),
            ]
        )
    best = grouped(best_rates(records), by=lambda r: r["method"])
    control = [r["held_out"] for r in best.get("vanilla", [])]
    if not control:
        return
    mean, wide = spread(control)
    yield "\nEach at its best rate, beside the stack without memory:\n"
    for method, same in best.items():
        if method != "vanilla":
            own, own_wide = spread([r["held_out"] for r in same])
            sure = abs(own - mean) > wide + own_wide and len(same) > 1 and len(control) > 1
            said = "beyond the seeds' spread" if sure else "within the seeds' spread, or one seed"
            yield f"- `{method}`: {own - mean:+.4f} nats per token, {said}."
