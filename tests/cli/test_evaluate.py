"""`memtx evaluate`: the numbers of memtx.evaluate on saved models, as table and JSON."""

import importlib.util
import json
from dataclasses import asdict

import pytest

from memtx import cli, load, save
from memtx.cli import evaluate as command
from memtx.cli import harness, measuring
from memtx.data import Edit, EditFields, Fact, Question, read_edits
from memtx.evaluate import (
    Confidence,
    EvaluationResult,
    StridedWindows,
    editing,
    forgetting,
    multiple_choice,
    perplexity,
    recall,
)
from tests.evaluate import models
from tests.evaluate.questions import write_questions, write_tasks, write_texts
from tests.train import tiny

TEXT = "Once upon a time there was a dog. It rained.\n" * 3 + "---\nThe end of it, said the girl."
QUESTIONS = [
    Question(context=fact.prompt, choices=[each.answer for each in tiny.FACTS], answer=number)
    for number, fact in enumerate(tiny.FACTS)
]
EDITS = [
    Edit(
        prompt=tiny.FACTS[0].prompt,
        target_new="Osk",
        target_true="Zim",
        paraphrases=["Ravlonia is governed from"],
        neighbours=[Fact(prompt="The capital of France is", answer="Paris")],
    ),
    Edit(
        prompt=tiny.FACTS[1].prompt,
        target_new="Pellin",
        target_true="The Glass Orchard",
        paraphrases=["A book of Mirel Tock is"],
        neighbours=[Fact(prompt="Quillan was born in", answer="1711")],
    ),
]
CONFIDENCE = Confidence(level=0.95, resamples=1000, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, a memory for it and a whole model, with files to measure them on."""
    folder = tmp_path_factory.mktemp("evaluated")
    tiny.base(seed=0).save_pretrained(folder / "base")
    save(models.adapter(), folder / "memory")
    save(models.whole(), folder / "whole")
    for name in ("base", "whole"):
        tiny.byte_tokenizer(crosses_words=False).save_pretrained(folder / name)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    write_questions(folder / "choices.jsonl", QUESTIONS)
    records = {
        "facts": [asdict(fact) for fact in tiny.FACTS],
        "edits": [
            {
                **{key: value for key, value in asdict(each).items() if key != "neighbours"},
                "locality_prompt": each.neighbours[0].prompt,
                "locality_ground_truth": each.neighbours[0].answer,
            }
            for each in EDITS
        ],
    }
    for name, rows in records.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture
def run(folder, capsys):
    def call(name, more):
        base = ["--base", str(folder / "base")] if name == "memory" else []
        code = cli.run(["evaluate", str(folder / name), *base, *map(str, more)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def expected(model, tokenizer):
    """The library's own numbers, by the names of the command."""
    both = {"model": model, "tokenizer": tokenizer, "batch_size": 3}
    windows = StridedWindows(max_length=24, stride=8)
    return {
        "perplexity of text.txt": perplexity(documents=[TEXT], windows=windows, **both),
        "recall of facts.json": recall(facts=tiny.FACTS, **both),
        "multiple choice of choices.jsonl": multiple_choice(
            questions=QUESTIONS, max_length=24, **both
        ),
        "editing of edits.json": editing(edits=EDITS, base=None, **both),
        "forgetting of text.txt": forgetting(documents=[TEXT], windows=windows, base=None, **both),
    }


ALL = {
    "--perplexity": "text.txt",
    "--facts": "facts.json",
    "--choices": "choices.jsonl",
    "--edits": "edits.json",
    "--forgetting": "text.txt",
}


def given_of(folder):
    return [each for flag, name in ALL.items() for each in (flag, folder / name)]


def test_all_at_once_are_the_librarys_numbers(folder, run, tmp_path):
    output = tmp_path / "new" / "it.json"
    sizes = ["--max-length", "24", "--stride", "8", "--batch-size", "3", "--seed", "5"]
    code, out, err = run("memory", [*given_of(folder), *sizes, "--json", "--output", output])
    assert code == 0, err
    assert "4 of 5: editing of edits.json, 2 edits\n" in err
    told = json.loads(out)
    assert json.loads(output.read_text(encoding="utf-8")) == told
    results = [EvaluationResult.from_json(json.dumps(each)) for each in told["results"]]
    wanted = expected(models.adapter(), tiny.byte_tokenizer(crosses_words=False))
    assert {each.name: dict(each.metrics) for each in results} == {
        name: found.metrics(CONFIDENCE) for name, found in wanted.items()
    }
    assert {each.seed for each in results} == {5}
    details = results[0].details
    assert (details["max_length"], details["stride"], details["documents"]) == (24, 8, 1)
    assert (told["path"], told["base"]) == (str(folder / "memory"), str(folder / "base"))


def test_a_table_with_the_memory_off_beside_it(folder, run):
    files = [folder / "facts.json", folder / "edits.json"]
    given = ["--facts", files[0], "--edits", files[1], "--compare"]
    code, out, err = run("memory", [*given, "--level", "0.9", "--batch-size", "3"])
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "| result | seed | metric | value | interval | items |"
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    for memory, model in {"off": models.bare(), "on": models.adapter()}.items():
        found = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=3)
        value = f"{found.num_recalled / 5:.4f}"
        (line,) = (each for each in lines if f"facts.json, memory {memory} |" in each)
        assert line.startswith(f"| recall of facts.json, memory {memory} |  | recall | {value} |")
        assert line.endswith("(wilson) | 5 |")
    # With the memory off, nothing can differ from the model before.
    (same,) = (each for each in lines if "memory off |  | specificity_unchanged |" in each)
    assert "| 1.0000 |" in same


def test_a_whole_model_documents_and_what_its_length_allows(folder, run):
    given = ["--perplexity", folder / "text.txt", "--separator", r"\n---\n", "--json"]
    code, out, err = run("whole", given)
    assert code == 0, err
    (result,) = json.loads(out)["results"]
    # As many tokens as the model has places for.
    assert result["details"]["max_length"] == 256
    assert result["details"]["documents"] == 2
    found = perplexity(
        model=load(folder / "whole"),
        tokenizer=tiny.byte_tokenizer(crosses_words=False),
        documents=TEXT.split("\n---\n"),
        windows=StridedWindows(max_length=256, stride=128),
        batch_size=8,
    )
    assert result["metrics"]["perplexity"]["value"] == pytest.approx(found.perplexity, rel=1e-6)


def test_fields_are_found_or_named(folder, data_folder, tmp_path, run):
    renamed = [{"q": each.context, "choices": each.choices, "answer": 0} for each in QUESTIONS]
    path = tmp_path / "renamed.json"
    path.write_text(json.dumps(renamed), encoding="utf-8")
    given = ["--choices", path, "--limit", "2"]
    code, _, err = run("memory", given)
    assert code == 1
    assert f"records must have context, got fields q, choices, answer in {path}; name" in err
    code, out, err = run("memory", [*given, "--field", "context=q"])
    assert code == 0, err
    assert "| 2 |" in out
    # The project's own files of CounterFact and zsRE, without a word of what is where.
    fields = {
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
    for name, each in fields.items():
        file = data_folder / "facts" / f"{name}-1k.json"
        found = measuring.items_of("edits", file, limit=5, fields={}, separator=None)
        assert found == read_edits(file, each, num_edits=5)
    # ROME teaches zsRE's own answers.
    own = {"target_new": "answers", "target_true": ""}
    found = measuring.items_of("edits", file, limit=1, fields=own, separator=None)
    assert (found[0].target_new, found[0].target_true) == ("uniform", None)


MISTAKES = {
    "nothing": ("memory", [], "there must be something to measure, got nothing; pass --perplexity"),
    "no file": ("memory", ["--facts", "no.json"], "there must be a file, got path='no.json'"),
    "no text": (
        "memory",
        ["--perplexity", "no.txt"],
        "memtx evaluate: --perplexity must be a file that can be read, got --perplexity=no.txt "
        "(No such file or directory); check the path.",
    ),
    "a field": ("memory", ["--facts", "x", "--field", "q=1"], "got --field='q=1'; for example"),
    "an empty one": ("memory", ["--facts", "x", "--field", "prompt="], "got --field='prompt=';"),
    "a batch": ("memory", ["--facts", "x", "--batch-size", "0"], "least 1, got --batch-size=0;"),
    "a length": ("memory", ["--facts", "x", "--max-length", "1"], "least 2, got --max-length=1;"),
    "whole": (
        "whole",
        ["--forgetting", "x"],
        "--forgetting is for a memory, which can be switched",
    ),
    "compared": ("whole", ["--facts", "x", "--compare"], "--compare is for a memory, which can"),
    "a folder": ("base", ["--facts", "{facts}"], "memtx evaluate"),
    "too many": ("memory", ["--facts", "{facts}", "--limit", "9"], "the 5 facts with distinct pro"),
    "a stride": (
        "memory",
        ["--perplexity", "{text}", "--stride", "9", "--max-length", "8"],
        "stride must be at most max_length, or tokens would be left out, got stride=9",
    ),
    "a level": (
        "memory",
        ["--facts", "{facts}", "--level", "1"],
        "got level=1.0; pass 0.95 for 95",
    ),
    "a separator": (
        "memory",
        ["--perplexity", "{text}", "--separator", "("],
        "--separator must be a regular expression, got --separator='(' (",
    ),
    "everything": (
        "memory",
        ["--perplexity", "{text}", "--separator", r"[\s\S]"],
        "--separator must leave documents, got",
    ),
    "output": ("memory", ["--facts", "x", "--output", "."], "a file that can be written, got --ou"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, folder, run):
    path, more, wanted = MISTAKES[name]
    names = {"{facts}": folder / "facts.json", "{text}": folder / "text.txt"}
    code, out, err = run(path, [names.get(each, each) for each in more])
    assert (code, out) == (1, "")
    told = [line for line in err.splitlines() if not line.startswith(("loading ", "1 of 1: "))]
    assert len(told) == 1, err
    assert wanted in told[0]


def test_without_the_harness_tasks_are_refused(folder, run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    code, out, err = run("memory", ["--tasks", "arc_easy,boolq"])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "got --tasks=arc_easy,boolq and no package lm_eval; run pip install 'memtx[ev" in err


def needs_harness():
    pytest.importorskip("lm_eval", reason="needs lm_eval: pip install '.[evaluate]'")


@pytest.mark.filterwarnings("ignore")
def test_tasks_of_the_harness_beside_own_measurements(folder, run, tmp_path, monkeypatch):
    needs_harness()
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tasks = write_tasks(
        tmp_path / "tasks",
        questions=folder / "choices.jsonl",
        texts=write_texts(tmp_path / "texts.jsonl", [TEXT]),
    )
    given = ["--choices", folder / "choices.jsonl", "--tasks", "memtx_choices,memtx_texts"]
    code, out, err = run("memory", [*given, "--include-path", tasks, "--json"])
    assert code == 0, err
    results = {each["name"]: each["metrics"] for each in json.loads(out)["results"]}
    ours, theirs = results["multiple choice of choices.jsonl"], results["memtx_choices (lm_eval)"]
    for own, name in {"accuracy": "acc", "accuracy_norm": "acc_norm"}.items():
        assert theirs[name]["value"] == pytest.approx(ours[own]["value"], rel=1e-5)
        assert theirs[name]["num_items"] == ours[own]["num_items"] == 5
        assert theirs[name]["interval"]["method"] == "normal"
    assert results["memtx_texts (lm_eval)"]["word_perplexity"]["value"] > 1
    code, out, err = run("memory", ["--tasks", "memtx_choices,no_such_task"])
    assert (code, out) == (1, "")
    assert "--tasks must be tasks of lm_eval, or of --include-path, got memtx_choices, no_su" in err


def test_the_harness_numbers_get_intervals_of_their_errors():
    values = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "f1,strict": 1.0,
        "n,none": "-",
    }
    found = harness._metrics(values, count=7, confidence=CONFIDENCE)
    assert sorted(found) == ["acc", "f1 (strict)"]
    assert found["acc"].num_items == 7
    assert found["acc"].interval.low == pytest.approx(0.5 - 1.959964 * 0.1)
    assert found["f1 (strict)"].interval is None
    counts = {"n-samples": {"a": {"effective": 2}, "b": {"effective": 3}}}
    assert harness._count(counts | {"group_subtasks": {"both": ["a", "b"]}}, "both") == 5


def test_help_and_an_incomplete_line(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(["evaluate", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert command.NOTES in text
    assert all(example in text for example in command.EXAMPLES)
    with pytest.raises(SystemExit) as end:
        cli.run(["evaluate"])
    assert end.value.code == 2
