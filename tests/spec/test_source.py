"""Source: it runs, gives the same model, and is formatted as ruff formats."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from memtx import Insertion, MemoryAdapter, Site, describe, to_source
from tests.adapters.bases import HIDDEN, fresh_adapter, llama, logits, token_ids
from tests.contract import CONTRACTS
from tests.parts import bank_of, linear, randomize, recall, think
from tests.spec.models import BANKS, adapter_reading, bank_from_rows, intricate_adapter


def one_liner():
    bank = bank_of(7, HIDDEN)
    insertion = Insertion(layer=0, site=Site.AFTER_MLP, sublayers=[recall(bank, HIDDEN)])
    return MemoryAdapter(base=llama(), banks=[bank], insertions=[insertion])


def reading(name):
    return adapter_reading(BANKS[name]())


def without_banks():
    insertion = Insertion(layer=0, site=Site.AFTER_MLP, sublayers=[think(HIDDEN)])
    return MemoryAdapter(base=llama(), banks=[], insertions=[insertion])


MODELS = (
    {
        "intricate": intricate_adapter,
        "one bank": one_liner,
        "no bank": without_banks,
        "usual": lambda: fresh_adapter(llama(), Site.AFTER_ATTENTION),
        "projection": lambda: linear(3, 4),
        "given rows": lambda: bank_from_rows(8, 4),
    }
    | {f"reading {name}": partial(reading, name) for name in BANKS}
    | {f"{number} {each.cls.__name__}": each.make for number, each in enumerate(CONTRACTS)}
)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def run_source(text, base):
    scope = {"base": base}
    exec(text, scope)
    return scope["model"]


def ruff(arguments, text):
    program = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if program is None:
        pytest.skip("needs ruff")
    command = [program, *arguments, "--isolated", "--line-length", "88", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_source_is_stable_under_ruff(model):
    text = to_source(model)
    done = ruff(["format"], text)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text
    done = ruff(["check", "--select", "I,F,E"], text.replace("base=base", "base=None"))
    assert done.returncode == 0, done.stdout


def test_source_gives_an_equal_model(model):
    again = run_source(to_source(model), getattr(model, "base", None))
    assert describe(again) == describe(model)
    assert to_source(again) == to_source(model)


def test_source_of_a_small_part():
    assert to_source(linear(3, 4)) == (
        "from memtx import Linear, Normal\n"
        "\n"
        "model = Linear(in_features=3, out_features=4, bias=False, init=Normal(std=0.3))\n"
    )


def test_given_rows_stand_as_zeros():
    assert to_source(bank_from_rows(8, 4)) == (
        "import torch\n"
        "\n"
        "from memtx import FromRows, StandardMemoryBank\n"
        "\n"
        "# torch.zeros stands for rows that were given: a saved memory holds their values.\n"
        "model = StandardMemoryBank(\n"
        "    num_memory_tokens=8,\n"
        "    dim=4,\n"
        "    init=FromRows(tensor=torch.zeros(8, 4)),\n"
        ")\n"
    )


def test_shared_parts_are_assigned_first_and_once():
    lines = to_source(intricate_adapter()).splitlines()
    assigned = [line.split(" = ")[0] for line in lines if " = " in line and line[0] != " "]
    assert sorted(assigned[:-1]) == ["bank_1", "bank_2", "q_proj", "sublayer"]
    assert assigned[-1] == "model"
    assert sum("StandardMemoryBank(" in line for line in lines) == 2
    assert sum("bank=bank_1," in line for line in lines) == 3


def test_a_shared_part_that_holds_another_comes_after_it():
    """A bank read by a block that is itself used twice, and by a reader outside of it."""
    bank = bank_of(7, HIDDEN)
    block = recall(bank, HIDDEN)
    insertions = [
        Insertion(layer=layer, site=Site.AFTER_MLP, sublayers=sublayers)
        for layer, sublayers in enumerate([[block], [block], [recall(bank, HIDDEN)]])
    ]
    model = MemoryAdapter(base=llama(), banks=[bank], insertions=insertions)
    text = to_source(model)
    assert text.index("bank = ") < text.index("sublayer = ") < text.index("model = ")
    again = run_source(text, llama())
    assert again.insertions[0].sublayers[0] is again.insertions[1].sublayers[0]
    assert again.insertions[0].sublayers[0].sublayer.bank is again.banks[0]
    assert again.insertions[2].sublayers[0].sublayer.bank is again.banks[0]


def test_logits_are_equal_after_copying_parameters():
    model, ids = intricate_adapter(), token_ids(2, 5)
    randomize(model.memory_parameters())
    wanted = logits(model, ids)
    again = run_source(to_source(model), model.remove())
    for mine, theirs in zip(again.memory_parameters(), model.memory_parameters(), strict=True):
        mine.data.copy_(theirs)
    assert torch.equal(logits(again, ids), wanted)
