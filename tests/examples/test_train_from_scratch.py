"""examples/train_from_scratch.py as a user starts it, on a comparison of seconds."""

import importlib.util
import json
import re
import struct
import sys

import pytest
import torch

from memtx import MemoryTransformer, load
from tests.examples.processes import script, start, workplace
from tests.examples.scripts import refusal_of

FACTORY = "tests.examples.quick_stacks:stacks"
NAMES = ["vanilla", "dense", "routed"]
PARAMETERS = {"vanilla": 1_393_792, "dense": 1_213_824, "routed": 1_705_088}
PARAGRAPH = "The {0}th day was like the day before it, and {0} birds sat on the wall. " * 4


def write_text(path):
    path.write_text("\n\n".join(PARAGRAPH.format(day) for day in range(120)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which stacks were trained on a text file, and what was printed."""
    folder = workplace(tmp_path_factory.mktemp("scratch"))
    write_text(folder / "days.txt")
    arguments = [FACTORY, "--text", "days.txt", "--output", "out/days"]
    ran = script("train_from_scratch", arguments, folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    return folder / "out" / "days", ran.stdout


def rows_of(output):
    lines = [line.split() for line in output.splitlines()]
    return {line[0]: line[1:] for line in lines if line and line[0] in NAMES}


def test_the_table_has_a_row_for_each_stack(done):
    output = done[1]
    head = "stack +parameters +MFLOPs/token +train loss +held-out loss +seconds"
    assert re.search(rf"(?m)^{head}$", output)
    rows = rows_of(output)
    assert list(rows) == NAMES
    for name, row in rows.items():
        assert int(row[0].replace(",", "")) == PARAMETERS[name]
        assert 2.0 < float(row[1]) < 5.0
        assert 0.0 < float(row[2]) < 9.0
        assert 0.0 < float(row[3]) < 9.0


def test_the_table_is_of_the_metrics(done):
    folder, output = done
    for name, row in rows_of(output).items():
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == 12
        assert [r["step"] for r in records if "held_out" in r] == [6, 12]
        assert float(row[2]) == pytest.approx(records[-1]["text"], abs=1e-4)
        assert float(row[3]) == pytest.approx(records[-1]["held_out"], abs=1e-4)
        assert records[-1]["text"] < records[0]["text"]
        assert any("LoadBalanceLoss" in key for key in records[0]) == (name == "routed")


def test_tokens_and_seed_are_shown(done):
    line = (
        r"12 steps of 4 x 48 tokens, 2,304 in all; 1 process\(es\) of 1 thread\(s\) on cpu; seed 0"
    )
    assert re.search(rf"(?m)^{line}$", done[1])
    assert re.search(r"(?m)^saved vanilla, dense, routed and curves.png in out/days$", done[1])


def test_the_curves_are_a_png_of_readable_size(done):
    content = (done[0] / "curves.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1_500, 675)
    assert len(content) > 20_000


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_the_trained_stack(done, name):
    model = load(done[0] / name)
    assert type(model) is MemoryTransformer
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    for residual in (s for layer in model.layers for s in layer.sublayers):
        assert residual.sublayer.state_dict()
    reads = [p for key, p in model.named_parameters() if key.endswith("1.sublayer.o_proj.weight")]
    # What started at zero did not stay there.
    assert all(p.any() for p in reads)
    ids = torch.tensor([[1, 2, 3]])
    assert model(input_ids=ids).logits.shape == (1, 3, 2_048)


@pytest.mark.slow
def test_two_processes_give_the_same_table(done, tmp_path):
    folder = workplace(tmp_path)
    write_text(folder / "days.txt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", f"--log-dir={folder / 'logs'}"]
    command += ["examples/train_from_scratch.py", FACTORY, "--text", "days.txt"]
    both = start(command, folder=folder, seed=0)
    assert both.returncode == 0, both.stderr
    assert "2 process(es) of 1 thread(s) on cpu" in both.stdout
    rows = rows_of(both.stdout)
    for name, alone in rows_of(done[1]).items():
        assert rows[name][:2] == alone[:2]
        assert [*map(float, rows[name][2:4])] == pytest.approx([*map(float, alone[2:4])], abs=2e-3)
    assert (folder / "runs" / "from_scratch" / "curves.png").is_file()


def test_without_matplotlib_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    message = refusal_of(monkeypatch, "train_from_scratch", [FACTORY])
    assert message == (
        "train_from_scratch: matplotlib must be installed to draw the curves; "
        "run pip install 'memtx[plot]'."
    )
    assert not any(tmp_path.iterdir())


def test_an_unknown_factory_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal_of(monkeypatch, "train_from_scratch", ["factories.pretraining:no"])
    assert message.startswith("train_from_scratch: FACTORY must be module:function of a factory, ")
    assert message.endswith("try factories.pretraining:tiny.")


def test_a_missing_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal_of(monkeypatch, "train_from_scratch", ["--text", "no.txt"])
    assert "'no.txt'" in message


def test_a_short_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("One.\n\nTwo.", encoding="utf-8")
    message = refusal_of(monkeypatch, "train_from_scratch", ["--text", "short.txt"])
    assert message.startswith("text_file: a text must hold at least 20,000 characters in paragraph")
    assert "got path='short.txt', documents=1;" in message
