"""memtx in lm-evaluation-harness, and the numbers of both on the same models and items."""

import json
import os
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import EntryPoint

import datasets
import pytest

from memtx.data import Question, read_documents
from memtx.evaluate import RollingWindows, multiple_choice, perplexity
from memtx.spec import save
from tests.evaluate import models
from tests.evaluate.questions import arc_easy, write_questions, write_tasks, write_texts
from tests.rules.source import ROOT
from tests.train import tiny

with warnings.catch_warnings():
    # Its dependencies warn of each other.
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval", reason="needs lm_eval: pip install '.[evaluate]'")
    import lm_eval.evaluator
    import lm_eval.tasks
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    from memtx.evaluate.harness import MemtxLM

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["Once upon a time there was a dog. " * 6, "The end of it.", "A cat sat on a mat.\n" * 3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tasks_of(folder, *, questions, texts):
    """The harness's own tasks over local files."""
    return write_tasks(
        folder / "tasks",
        questions=write_questions(folder / "questions.jsonl", questions),
        texts=write_texts(folder / "texts.jsonl", texts),
    )


def results_of(model, folder):
    """What the harness measures of a model object, by task and metric."""
    found = lm_eval.evaluator.simple_evaluate(
        model=model,
        tasks=["memtx_choices", "memtx_texts"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    return {
        key.split(",")[0]: value
        for task in found["results"].values()
        for key, value in task.items()
        if key.endswith(",none") and "stderr" not in key
    }


def numbers_of(model, tokenizer, *, questions, texts, max_length):
    """What this project measures of it, by the harness's names."""
    choices = multiple_choice(
        model=model,
        tokenizer=tokenizer,
        questions=questions,
        max_length=max_length,
        batch_size=8,
    )
    windows = RollingWindows(max_length=max_length, prefix_token_id=tokenizer.bos_token_id)
    found = perplexity(
        model=model, tokenizer=tokenizer, documents=texts, windows=windows, batch_size=4
    )
    return {
        "acc": choices.accuracy,
        "acc_norm": choices.accuracy_norm,
        "acc_bytes": choices.accuracy_bytes,
        "word_perplexity": found.word_perplexity,
        "byte_perplexity": found.byte_perplexity,
        "bits_per_byte": found.bits_per_byte,
    }


def expect_four_digits(given, wanted):
    assert given.keys() == wanted.keys()
    assert {k: f"{v:.4g}" for k, v in given.items()} == {k: f"{v:.4g}" for k, v in wanted.items()}
    assert given == pytest.approx(wanted, rel=1e-5)


def test_both_agree_on_a_real_model_with_the_harness_own_model_class(data_folder, tmp_path):
    base, tokenizer = tiny.stories(data_folder)
    questions = arc_easy(data_folder, 60)
    texts = [*read_documents(data_folder / "text" / "tinystories.txt", r"\n\s*\n")[:4], *TEXTS]
    folder = tasks_of(tmp_path, questions=questions, texts=texts)
    # By transformers' own code, without anything of this project.
    theirs = results_of(
        HFLM(pretrained=base, tokenizer=tokenizer, batch_size=4, max_length=128), folder
    )
    ours = numbers_of(base, tokenizer, questions=questions, texts=texts, max_length=128)
    expect_four_digits(ours, theirs)
    assert 0.1 < theirs["acc"] < 0.9
    assert theirs["acc"] != theirs["acc_norm"]
    through = results_of(
        MemtxLM(model=base, tokenizer=tokenizer, batch_size=3, max_length=128), folder
    )
    expect_four_digits(through, theirs)


KINDS = {
    kind: models.KINDS[kind] for kind in ("adapter", "routed", "two_memories", "lora", "whole")
}


@pytest.mark.parametrize("kind", [*KINDS, "prompted"])
def test_models_with_memory(kind, tmp_path):
    model = {**KINDS, "prompted": models.prompted}[kind]()
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.bos_token = "<end>"
    questions = five_questions()
    folder = tasks_of(tmp_path, questions=questions, texts=TEXTS)
    lm = MemtxLM(model=model, tokenizer=tokenizer, batch_size=4, max_length=40)
    ours = numbers_of(model, tokenizer, questions=questions, texts=TEXTS, max_length=40)
    expect_four_digits(results_of(lm, folder), ours)
    # It continues texts too, as the model itself does.
    prompt = tiny.FACTS[0].prompt
    instance = Instance(
        request_type="generate_until", doc={}, arguments=(prompt, {"max_gen_toks": 4}), idx=0
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    wanted = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    said = tokenizer.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)
    assert lm.generate_until([instance], disable_tqdm=True) == [said]


def artifacts(folder):
    """A base with its tokenizer, a memory on it, and a whole model, each as a user has them."""
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    base, whole = models.bare(), models.whole()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    memory = tiny.adapter(model=base).eval()
    tiny.perturb(memory)
    save(memory, folder / "memory")
    save(whole, folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    return {"memory": memory, "whole": whole}, tokenizer


def five_questions():
    choices = [fact.answer for fact in tiny.FACTS]
    return [
        Question(context=fact.prompt, choices=choices, answer=n)
        for n, fact in enumerate(tiny.FACTS)
    ]


def saved_numbers(model, tokenizer):
    tokenizer.bos_token = tokenizer.eos_token
    return numbers_of(model, tokenizer, questions=five_questions(), texts=TEXTS, max_length=40)


def test_a_whole_model_from_a_folder(tmp_path):
    saved, tokenizer = artifacts(tmp_path)
    lm = MemtxLM.create_from_arg_string(
        f"path={tmp_path / 'whole'},max_length=40", {"batch_size": 2, "device": "cpu"}
    )
    folder = tasks_of(tmp_path, questions=five_questions(), texts=TEXTS)
    expect_four_digits(results_of(lm, folder), saved_numbers(saved["whole"], tokenizer))


def test_the_command_on_a_memory_and_its_base(tmp_path):
    saved, tokenizer = artifacts(tmp_path)
    folder = tasks_of(tmp_path, questions=five_questions(), texts=TEXTS)
    arguments = f"path={tmp_path / 'memory'},base={tmp_path / 'base'},max_length=40"
    command = [sys.executable, "-m", "memtx.evaluate.harness", "--model", "memtx"]
    command += ["--model_args", arguments, "--device", "cpu", "--batch_size", "2"]
    command += ["--tasks", "memtx_choices,memtx_texts", "--include_path", str(folder)]
    command += ["--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memtx_choices" in done.stdout
    (written,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(written.read_text())["results"]
    wanted = saved_numbers(saved["memory"], tokenizer)
    given = {
        name: results["memtx_choices" if name.startswith("acc") else "memtx_texts"][f"{name},none"]
        for name in wanted
    }
    expect_four_digits(given, wanted)


def test_the_entry_point_is_the_registered_class():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = project["project"]["entry-points"]["lm_eval.models"]
    assert named == {"memtx": "memtx.evaluate.harness:MemtxLM"}
    entry = EntryPoint(name="memtx", value=named["memtx"], group="lm_eval.models")
    assert entry.load() is MemtxLM is get_model("memtx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("base=x", "MemtxLM: model_args must name the path .* got path=None, model_args="),
        ("path={whole},base=x", "MemtxLM: a whole model has no base, got path=.*, base='x';"),
    ],
)
def test_arguments_are_checked(arguments, message, tmp_path):
    artifacts(tmp_path)
    with pytest.raises(ValueError, match=message):
        MemtxLM.create_from_arg_string(arguments.format(whole=tmp_path / "whole"), {})
