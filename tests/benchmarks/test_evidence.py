"""The scripts of the evidence run from end to end at tiny size; the page says what is missing."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.evidence import (
    base,
    chapters,
    facts,
    injection,
    lessons,
    report,
    sections,
    texts,
)
from factories.world import invented_facts
from memtx.evaluate import recall

# peft asks transformers by a name that goes out of use.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WORDS = "The river runs to the sea and the wind comes over the hills at night.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data in the layout of the real one, a base trained on it, and the results of all scripts."""
    place = tmp_path_factory.mktemp("evidence")
    data = place / "data"
    (data / "text").mkdir(parents=True)
    (data / "facts").mkdir()
    (data / "text" / "tinyshakespeare.txt").write_text(WORDS * 400, encoding="utf-8")
    _, facts = invented_facts(seed=0, num_old=0, num_new=12)
    records = [
        {
            "prompt": fact.prompt,
            "target_new": fact.answer,
            "ground_truth": "nothing",
            "rephrase_prompt": f"As is known, {fact.prompt}",
            "locality_prompt": "The river runs to",
            "locality_ground_truth": "the sea",
        }
        for fact in facts
    ]
    path = data / "facts" / "counterfact-1k.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "manual", short_manual)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        run(patch, base, [str(data), "--size", "tiny", "--output", str(place / "base"),
            "--results", str(place / "results")])  # fmt: skip
        yield place
        assert (place / "base" / "report.json").is_file()


def short_manual(*, seed):
    return [WORDS * 30] * 3, [WORDS * 3]


def run(patch, script, arguments):
    patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def asked(folder, work):
    return ["--data", str(folder / "data"), "--work", str(folder / work)]


@pytest.fixture(scope="module")
def taught(folder):
    """Two methods through sweep, teaching and batches."""
    common = [*asked(folder, "facts"), "--base", str(folder / "base")]
    methods = ["--methods", "memory-sparse", "prefix", "lora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(texts, "manual", short_manual)
        patch.setattr(lessons, "COUNTED", 4)
        size = ["--steps", "2", "--sources", "counterfact", "--rates", "1", "--weights", "0", "2",
                "--sweep-facts", "6", "--sizes", "12", "--seeds", "0", "--facts-per-step", "6",
                "--batches", "2", "--batch-facts", "3", "--batch-steps", "2"]  # fmt: skip
        run(patch, facts, [*common, *methods, *size])
        run(patch, facts, [*common, "--merge", str(folder / "results")])
    return folder


def records(folder, name):
    return json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))["records"]


def test_the_base_tells_its_losses_by_domain(folder):
    found = {r["case"]: r for r in records(folder, "evidence_base")}
    assert set(found) == {"training", "shakespeare", "manual"}
    assert found["training"]["parameters"] > 0
    assert found["manual"]["loss"] > 0.0


def test_a_record_of_learning_says_what_design_asks(taught):
    found = records(taught, "evidence_injection")
    assert len(found) == 12  # three methods, protected and not, in the sweep and after it
    wanted = {"method", "facts", "seed", "recall", "paraphrase", "locality"}
    wanted |= {"background_loss_rise", "background_kl", "trainable_parameters", "seconds"}
    for record in found:
        assert wanted <= set(record), record["run"]
        assert record["protected"] == (record["locality_weight"] > 0.0)
        assert record["facts"] == (6 if record["stage"] == "sweep" else 12)


def test_the_rate_is_that_of_the_most_recall_and_then_of_the_least_forgetting():
    def tried(rate, recall, rise):
        return {"stage": "sweep", "method": "lora", "protected": True, "run": str(rate),
                "recall": recall, "background_loss_rise": rise}  # fmt: skip

    runs = [tried(1, 0.99, 0.5), tried(2, 0.98, 0.1), tried(3, 0.9, 0.0)]
    runs.append(tried(4, 1.0, 0.0) | {"failed": "loss is nan"})
    assert injection.chosen(runs, method="lora", protected=True)["run"] == "2"
    with pytest.raises(ValueError, match="got method=full, protected=True"):
        injection.chosen(runs, method="full", protected=True)
    assert injection.choices(runs, method="full", protected=True) == []
    with pytest.raises(ValueError, match="got method=full, protected=True, records=0"):
        injection.choices([], method="full", protected=True)


def test_batches_are_asked_for_after_each(taught):
    found = records(taught, "evidence_continual")
    assert len(found) == 6  # as many methods, protected and not
    record = found[0]
    assert [len(each) for each in record["recall_after"]] == [1, 2]
    assert record["recall_of_first"] == record["recall_after"][-1][0]


def test_what_is_recalled_is_what_greedy_decoding_says(folder):
    bench = lessons.bench_of(folder / "data", base=str(folder / "base"))
    edits = [replace(edit, target_new="the sea") for edit in bench.facts["counterfact"]]
    made = injection.prepared(bench, method="lora", seed=0)
    lesson = lessons.Lesson(
        steps=25,
        facts_per_step=12,
        rates=injection.Rates(bank=0.0, rest=1e-2),
        locality_weight=0.0,
        seed=0,
    )
    lessons.teach(made, bench, edits, lesson=lesson, written=None)
    # Some that it was taught, and some that it was not.
    edits = edits[:6] + bench.facts["counterfact"][6:]
    told = lessons.measured(made, bench, edits)["recall"]
    said = recall(
        model=made.model,
        tokenizer=bench.tokenizer,
        facts=[edit.fact for edit in edits],
        batch_size=4,
    )
    assert told == said.num_recalled / said.num_facts == 0.5


def test_stacks_from_scratch_take_equal_arithmetic():
    size = chapters.SIZES["30m"]
    found = {
        name: chapters.flops_of(size, compose)
        for name, (_, compose) in chapters.stacks(size).items()
    }
    assert list(found) == ["vanilla", "dense-1024", "routed-16384", "routed-65536"]
    for name, flops in found.items():
        assert abs(flops / found["vanilla"] - 1.0) < 0.005, name


def test_the_page_has_what_was_measured_and_names_what_was_not(taught):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "manual", short_manual)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        run(patch, chapters, [*asked(taught, "stacks"), "--tokenizer", str(taught / "base"),
            "--size", "tiny", "--steps", "10", "--seeds", "0", "--rates", "1e-3"])  # fmt: skip
        run(patch, chapters, [*asked(taught, "stacks"), "--merge", str(taught / "results")])
    docs = taught / "docs"
    page = report.page(taught / "results", docs=docs)
    assert "not measured" not in page
    assert "12 facts of counterfact, the base trained by memtx" in page
    assert "| `memory-sparse` | protected |" in page
    assert "`routed-256`" in page
    plots = {"evidence-injection-own.png", "evidence-continual-own.png", "evidence-chapters.png"}
    assert {path.name for path in docs.iterdir()} == plots
    for name in plots:
        assert f"]({name})" in page


def test_a_page_without_results_says_so(tmp_path):
    page = report.page(tmp_path, docs=tmp_path)
    for name in report.TITLES:
        assert f"`benchmarks/results/{name}.json`: not measured." in page
    assert list(tmp_path.iterdir()) == []


def test_goals_are_told_from_the_records():
    def taught_to(method, protected, recall, rise):
        return {"base": "own", "source": "counterfact", "facts": 9, "method": method,
                "protected": protected, "recall": recall, "background_loss_rise": rise}  # fmt: skip

    lora = [taught_to("lora", False, 0.9, 1.0), taught_to("lora", True, 0.9, 0.2)]
    for rise, share, verdict in (
        (0.1, 0.9, "| reached |"),
        (0.11, 0.9, "| **not reached** |"),
        (0.05, 0.89, "| **not reached** |"),
    ):
        rows = [*sections.goals([*lora, taught_to("memory-sharp", True, share, rise)])]
        assert rows[-1].endswith(verdict), rows[-1]
    forgot_nothing = [each | {"background_loss_rise": -0.1} for each in lora]
    rows = [*sections.goals([*forgot_nothing, taught_to("memory-sharp", True, 1.0, -0.1)])]
    assert rows[-1].endswith("| - |")
