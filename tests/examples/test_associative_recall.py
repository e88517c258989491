"""examples/associative_recall.py: its texts, its measure, and as a user starts it."""

import importlib
import json
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from factories.associative_recall import quick
from tests.examples.processes import script, workplace
from tests.examples.scripts import refusal_of

FACTORY = "tests.examples.quick_recall:models"
NAMES = ["plain, then delta", "softmax behind"]
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh"}
recall = importlib.import_module("examples.associative_recall")


def texts(*, rows, pairs, length, once):
    return recall.texts(
        rows=rows,
        pairs=pairs,
        length=length,
        vocab_size=64,
        generator=torch.Generator().manual_seed(0),
        once=once,
    )


@pytest.mark.parametrize("once", [True, False])
def test_a_label_is_the_value_written_behind_the_key(once):
    ids, labels = texts(rows=5, pairs=4, length=32, once=once)
    assert ids.shape == labels.shape == (5, 32)
    for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        keys, values = row[0:8:2], row[1:8:2]
        assert len(set(keys)) == len(set(values)) == 4
        assert all(1 <= key < 32 <= value < 64 for key, value in zip(keys, values, strict=True))
        asked = [place for place in range(8, 32) if row[place] != 0]
        assert all(place % 2 == 0 for place in asked)
        value_of = dict(zip(keys, values, strict=True))
        expected = {place + 1: value_of[row[place]] for place in asked}
        assert expected == {place: label for place, label in enumerate(wanted) if label != -100}
        if once:
            assert sorted(row[place] for place in asked) == sorted(keys)
        else:
            assert len(asked) == 12


def test_a_model_that_knows_nothing_answers_nothing():
    comparison = quick()
    model = comparison.models["plain"]()
    share = recall.accuracy(model, comparison, pairs=8, device=torch.device("cpu"))
    assert share < 0.05
    assert model.training


@pytest.mark.parametrize("name", ["plain", "softmax"])
def test_the_loss_of_a_step_is_the_loss_of_the_model(name):
    model = quick().models[name]()
    ids, labels = texts(rows=5, pairs=4, length=32, once=False)
    given = recall.loss_of(model, ids, labels, pairs=4)
    torch.testing.assert_close(given, model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("name", quick().models)
def test_a_step_can_be_recorded(name):
    """Nothing in it waits for a number from the GPU."""

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args, kwargs):
            assert function._schema.name.removeprefix("aten::") not in WAITS
            return function(*args, **(kwargs or {}))

    model = quick().models[name]()
    optimizer = recall.optimizer_of(model, learning_rate=1e-3)
    ids, labels = texts(rows=2, pairs=4, length=32, once=False)
    steps = recall.Steps(model=model, optimizer=optimizer)
    steps.run(ids, labels, pairs=4)  # what is made once is made
    with Waits():
        recall.loss_of(model, ids, labels, pairs=4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def test_texts_are_made_ahead():
    comparison = quick()
    generator = torch.Generator().manual_seed(0)
    steps = recall.texts_ahead(comparison, pairs=8, generator=generator)
    assert len(steps) == recall.AHEAD
    for ids, labels in steps:
        assert ids.shape == labels.shape == (comparison.tokens_per_step // 32, 32)
    assert not torch.equal(steps[0][0], steps[1][0])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder that a run of seconds left, and what it printed."""
    folder = workplace(tmp_path_factory.mktemp("recall"))
    ran = script("associative_recall", [FACTORY, "--output", "out"], folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    return folder / "out", ran.stdout


def test_the_table_is_of_the_records(done):
    folder, output = done
    records = json.loads((folder / "recall.json").read_text(encoding="utf-8"))
    assert [record["method"] for record in records] == NAMES
    for record in records:
        assert record["steps"] == [75, 150]
        shares = "".join(f" +{found[-1]:.3f}" for found in record["accuracy"].values())
        assert re.search(rf"(?m)^{record['method']} +[\d,]+{shares} +\d+$", output)


def test_a_tensor_memory_learns_what_was_written(done):
    records = json.loads((done[0] / "recall.json").read_text(encoding="utf-8"))
    assert records[0]["accuracy"]["1"][-1] > 0.9


def test_the_plot_is_drawn(done):
    assert (done[0] / "recall.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_unknown_factory_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal_of(monkeypatch, "associative_recall", ["factories.associative_recall:no"])
    assert message.startswith("associative_recall: FACTORY must be module:function of a factory, ")
    assert message.endswith("try factories.associative_recall:quick.")
