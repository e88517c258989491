"""`memtx train`: the factories it takes, what it saves and says, and what it refuses."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factories.pretraining import text_file
from memtx import cli, load, load_adapter
from memtx.cli import train as command
from memtx.cli.text import training_text
from tests.cli import lessons
from tests.rules.source import ROOT
from tests.train import tiny

# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
HERE = "tests.cli.lessons"
PARAGRAPHS = "\n\n".join(f"{number} " + "and so it went on. " * 20 for number in range(120))


def run(capsys, function, more):
    code = cli.run(["train", f"{HERE}:{function}", *map(str, more)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(PARAGRAPHS, encoding="utf-8")
    return tmp_path / "text.txt"


def saved_base(folder):
    tiny.base(seed=0).save_pretrained(folder)
    tiny.byte_tokenizer(crosses_words=False).save_pretrained(folder)
    return folder


def test_a_trainer_alone_is_run_and_its_memory_saved(tmp_path, capsys):
    expected = lessons.alone()
    losses = [record["loss"] for record in expected.run()]
    code, out, err = run(capsys, "alone", ["--output", tmp_path / "out"])
    assert code == 0, err
    assert out.startswith("group ")
    ends = re.escape(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    assert re.search(rf"(?m)^3 of 3 steps in \d+ s; {ends}$", out)
    assert f"  saved {tmp_path / 'out' / 'memory'}\n" in out
    # It brought no logger of its own: progress is told all the same.
    assert "train 3/3" in err
    adapter = load_adapter(tmp_path / "out" / "memory", tiny.base(seed=0))
    assert tiny.same(tiny.memory_of(adapter), tiny.memory_of(expected.objective.model))


def test_a_lesson_as_json_can_be_asked_for(tmp_path, capsys):
    code, out, err = run(capsys, "lesson", ["--output", tmp_path, "--seed", "3", "--json"])
    assert code == 0, err
    told = json.loads(out)
    assert "group " in err
    assert list(told["runs"]) == ["memory"]
    one = told["runs"]["memory"]
    assert (told["seed"], told["processes"], told["device"]) == (3, 1, "cpu")
    assert (one["kind"], one["steps"], one["steps_taken"]) == ("memory", 3, 3)
    assert (one["base"], one["saved"]) == (str(tmp_path / "base"), str(tmp_path / "memory"))
    assert one["first"]["step"] == 1
    assert one["last"]["loss"] > 0
    assert cli.run(["ask", one["saved"], "--base", one["base"], tiny.FACTS[0].prompt]) == 0


def test_on_a_base_that_the_command_line_names(tmp_path, capsys):
    base = saved_base(tmp_path / "base")
    more = ["--base", base, "--set", "steps=2", "--output", tmp_path / "out"]
    code, out, err = run(capsys, "on_base", more)
    assert code == 0, err
    assert "2 of 2 steps" in out
    load_adapter(tmp_path / "out" / "memory", AutoModelForCausalLM.from_pretrained(base))


def test_several_on_a_text_are_saved_side_by_side(tmp_path, text, capsys):
    code, out, err = run(capsys, "several", ["--text", text, "--output", tmp_path / "out"])
    assert code == 0, err
    assert out.count("group ") == 2
    assert "whole: 3 of 3 steps" in out
    assert "adapter: 3 of 3 steps" in out
    load(tmp_path / "out" / "whole")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "whole")) == 320
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "whole"]


def test_a_whole_model_again_with_the_same_seed(tmp_path, capsys):
    models = []
    for name in ("one", "other"):
        code, _, err = run(capsys, "whole", ["--output", tmp_path / name])
        assert code == 0, err
        models.append(load(tmp_path / name / "model").state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_the_folder_is_named_after_the_function(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "alone", [])[0] == 0
    assert (tmp_path / "runs" / "alone" / "memory" / "memory.json").is_file()


@pytest.mark.slow
def test_two_processes_by_torchrun_learn_what_one_does(tmp_path, capsys):
    code, out, err = run(capsys, "lesson", ["--output", tmp_path / "one", "--json"])
    assert code == 0, err
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node=2", f"--log-dir={tmp_path / 'logs'}", "-m", "memtx", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, f"{HERE}:lesson", "--output", str(tmp_path / "two"), "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(out), json.loads(done.stdout)
    assert (one["processes"], two["processes"]) == (1, 2)
    ends = [report["runs"]["memory"]["last"]["loss"] for report in (one, two)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    assert done.stderr.count("group ") == 1
    load_adapter(tmp_path / "two" / "memory", tiny.base(seed=0))


MISTAKES = {
    "no function": ("no", [], "FUNCTION must be a function of tests.cli.lessons, got FUNCTION='n"),
    "no trainer": ("number", [], "or several in a dict `trainers`, got int from tests.cli.lessons"),
    "no trainers": ("numbers", [], "got int from tests.cli.lessons:numbers; name another"),
    "its own": ("broken", [], "got KeyError: 'mine' (at "),
    "a refusal": ("refusing", [], "steps must be an integer of at least 1, got steps=0;"),
    "another model": ("with_lora", [], "or a whole model of memtx, got model=PeftModel"),
    "no text": ("several", [], "makes of documents and held_out, got no --text; pass --text FILE"),
    "no base": ("on_base", ["--set", "steps=1"], "got no --base; pass --base BASE."),
    "no steps": ("on_base", ["--base", "x"], "got missing=['steps'], unknown=[];"),
    "a text": (
        "alone",
        ["--text", "x"],
        "got --text=x for tests.cli.lessons:alone, which takes no",
    ),
    "a base": ("lesson", ["--base", "x"], "which takes folder, seed, parallelism; leave it out."),
    "twice": ("lesson", ["--set", "seed=1"], "got --set seed=1; leave it out."),
    "unknown": ("lesson", ["--set", "x=1"], "got missing=[], unknown=['x'];"),
    "no file": (
        "several",
        ["--text", "nowhere.txt"],
        "--text must be a file that can be read, got --text=nowhere.txt (No such file or dir",
    ),
    "nowhere": (
        "on_base",
        ["--base", "no/where", "--set", "steps=1"],
        "that can be reached, got --base=no/where (",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, tmp_path, capsys):
    function, more, wanted = MISTAKES[name]
    code, out, err = run(capsys, function, [*more, "--output", tmp_path / "out"])
    assert (code, out) == (1, "")
    assert wanted in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("memory"))


def test_what_stands_in_the_way_is_told_before_training(tmp_path, capsys):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "notes.txt").write_text("mine", encoding="utf-8")
    code, out, err = run(capsys, "alone", ["--output", tmp_path])
    assert (code, out) == (1, "")
    assert f"saved as {tmp_path / 'memory'}, which must be free or a saved memory, got ['no" in err
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    code, _, err = run(capsys, "alone", ["--output", tmp_path / "file"])
    assert (code, err.count("\n")) == (1, 1)
    assert "must be a folder that can be written" in err


def test_an_interrupted_run_ends_with_130(tmp_path, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("memtx.train.Trainer.run", interrupted)
    code, _, err = run(capsys, "alone", ["--output", tmp_path])
    assert (code, err) == (130, "memtx: interrupted\n")


def test_texts_are_cut_as_the_factory_cuts_them(text):
    assert training_text(text, command="memtx train") == text_file(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "--text must be UTF-8 text, got --text="),
        (b" \n", "--text must hold text, got --text="),
        (b"little.\n\nmore.", "of 1 document(s); pass more text."),
    ],
)
def test_texts_that_will_not_do(content, message, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    code, out, err = run(capsys, "several", ["--text", path, "--output", tmp_path / "out"])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_help_says_what_a_factory_may_take(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert command.FACTORIES in text
    assert all(example in text for example in command.EXAMPLES)
    with pytest.raises(SystemExit) as end:
        cli.run(["train"])
    assert end.value.code == 2
