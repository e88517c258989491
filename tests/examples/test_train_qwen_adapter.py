"""examples/train_qwen_adapter.py and report.py as a user starts them, on a lesson of seconds."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from factories.world import invented_facts
from tests.examples.processes import last_command, script, start, workplace
from tests.examples.scripts import refusal_of, run_here

LESSON = "tests.examples.quick:lesson"
NUMBER = r"(\d+\.\d{4})"


def shown(output: str, row: str) -> tuple[str, ...]:
    """The values of a row of the table, which must be there once."""
    (values,) = re.findall(rf"(?m)^ *{row} *$", output)
    return values if isinstance(values, tuple) else (values,)


def recalled(output: str, which: str) -> tuple[int, ...]:
    """Facts recalled with memory off, of how many, with memory on, of how many."""
    return tuple(map(int, shown(output, rf"{which} facts.* (\d+) of (\d+) +(\d+) of (\d+)")))


def losses(output: str) -> tuple[float, ...]:
    return tuple(map(float, shown(output, rf"loss on held-out old text.* {NUMBER} +{NUMBER}")))


def record_of(folder: Path) -> dict:
    return json.loads((folder / "runs" / "lesson" / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, str]:
    """The folder that one process left, and what it printed."""
    folder = workplace(tmp_path_factory.mktemp("alone"))
    done = script("train_qwen_adapter", [LESSON], folder=folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder, done.stdout


def test_the_memory_recalls_what_the_base_does_not_know(alone):
    off, of, on, also_of = recalled(alone[1], "new")
    assert (off, of, also_of) == (0, 8, 8)
    assert on >= 7


def test_the_table_shows_old_facts_losses_and_that_off_equals_before(alone):
    _, of, _, also_of = recalled(alone[1], "old")
    assert (of, also_of) == (2, 2)
    off, on = losses(alone[1])
    assert off != on
    assert float(*shown(alone[1], r"change +([+-]\d+\.\d\d)%")) == pytest.approx(
        100 * (on / off - 1), abs=0.01
    )
    assert shown(alone[1], "off equals before, bit for bit +(yes|NO)") == ("yes",)


def test_sizes_and_times_are_shown(alone):
    assert "base 1,050,752 parameters, memory 295,424 (1.1 MiB on disk)" in alone[1]
    pattern = r"base ready in \d+ s, taught in \d+ s by 1 process\(es\), loaded .* \d+ s; seed 0"
    assert re.search(pattern, alone[1])
    # The groups, before anything is taught.
    assert re.search(r"(?m)^bank +1 +32,768 ", alone[1])
    assert re.search(r"(?m)^reading +20 +262,656 ", alone[1])


def test_five_questions_are_shown_with_both_answers(alone):
    folder, output = alone
    lines = output.splitlines()
    (head,) = (n for n, line in enumerate(lines) if line.startswith("question "))
    assert re.fullmatch(r"question +memory off +memory on *", lines[head])
    facts = record_of(folder)["new_facts"][:5]
    answers = [
        re.fullmatch(rf"{re.escape(fact['prompt'])} +(.*\S) {{2,}}(\S+) *", line)
        for fact, line in zip(facts, lines[head + 1 : head + 6], strict=True)
    ]
    assert all(answers)
    right = [each[2] == fact["answer"] for each, fact in zip(answers, facts, strict=True)]
    assert sum(right) >= 4
    assert not any(each[1] == fact["answer"] for each, fact in zip(answers, facts, strict=True))


def test_the_command_that_it_prints_asks_more(alone):
    folder, output = alone
    command = last_command(output)
    fact = record_of(folder)["new_facts"][5]
    assert command.endswith(f'"{fact["prompt"]}"')
    done = start(command, folder=folder, seed=0)
    assert done.returncode == 0, done.stderr
    question, off, on = done.stdout.splitlines()
    assert question == fact["prompt"]
    assert off.startswith("  memory off: ")
    assert fact["answer"] not in off
    assert on == f"  memory on:  {fact['answer']}"


def test_the_record_holds_the_world_of_the_seed(alone):
    record = record_of(alone[0])
    old, new = invented_facts(seed=0, num_old=4, num_new=8)
    assert record["seed"] == 0
    assert record["new_facts"] == [vars(fact) for fact in new]
    assert record["old_facts"] == [vars(fact) for fact in old[2:]]


@pytest.mark.slow
def test_two_processes_give_the_same_table(alone, tmp_path):
    folder = workplace(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", f"--log-dir={folder / 'logs'}"]
    command += ["examples/train_qwen_adapter.py", LESSON]
    done = start(command, folder=folder, seed=0)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert " by 2 process(es)" in done.stdout
    off, _, on, _ = recalled(done.stdout, "new")
    assert off == 0
    assert on >= 7
    assert recalled(done.stdout, "old") == recalled(alone[1], "old")
    assert losses(done.stdout)[0] == losses(alone[1])[0]
    assert losses(done.stdout)[1] == pytest.approx(losses(alone[1])[1], rel=5e-3)
    assert shown(done.stdout, "off equals before, bit for bit +(yes|NO)") == ("yes",)
    assert last_command(done.stdout) == last_command(alone[1])
    one, two = record_of(alone[0]), record_of(folder)
    same = ("seed", "base", "memory", "new_facts", "old_facts", "held_out", "old_text_loss_before")
    assert {key: two[key] for key in same} == {key: one[key] for key in same}


def test_another_seed_gives_other_facts(alone, tmp_path, monkeypatch):
    reports = Mock()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMTX_SEED", "1")
    # What the report says of a run is tested above.
    monkeypatch.setattr(subprocess, "run", reports)
    run_here(monkeypatch, "train_qwen_adapter", [LESSON])
    first, other = record_of(alone[0]), record_of(tmp_path)
    assert other["seed"] == 1
    assert other["new_facts"] == [
        vars(fact) for fact in invented_facts(seed=1, num_old=4, num_new=8)[1]
    ]
    named = [{fact[key] for fact in run["new_facts"] for key in fact} for run in (first, other)]
    assert not named[0] & named[1]
    assert other["held_out"] != first["held_out"]
    (call,) = reports.call_args_list
    assert call.args[0][-1] == "runs/lesson"


@pytest.mark.parametrize(
    "name",
    ["nothing", "", ":tiny", "factories.qwen_adapter", "factories.qwen_adapter:none", "no.such:x"],
)
def test_a_bad_factory_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal_of(monkeypatch, "train_qwen_adapter", [name])
    assert message.startswith(
        f"train_qwen_adapter: the argument must be module:function of a factory, got {name!r} ("
    )
    assert message.endswith("; try factories.qwen_adapter:tiny.")
    assert not list(tmp_path.iterdir())


def test_too_many_arguments_are_refused(monkeypatch):
    message = refusal_of(monkeypatch, "train_qwen_adapter", [LESSON, LESSON])
    assert message == (
        "train_qwen_adapter: takes at most one argument, the factory as module:function."
    )


def test_report_refuses_a_folder_without_a_run_in_one_line_without_traceback(tmp_path):
    done = script("report", ["."], folder=workplace(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "report: there must be a run.json, got run.json; run train_qwen_adapter.py first.\n"
    )


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_report_takes_one_folder(arguments, monkeypatch):
    message = refusal_of(monkeypatch, "report", arguments)
    assert message == "report: takes one argument, a folder that train_qwen_adapter.py left."
