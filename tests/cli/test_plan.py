"""`memtx plan`: every factory of the repository, and every mistake in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from memtx import cli
from memtx.cli import find
from memtx.cli import plan as command
from memtx.evaluate.plan import OPTIMIZERS

# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SCRATCH = [
    f"from_scratch:{stack}_{size}"
    for size in ("tiny", "30m")
    for stack in ("vanilla", "dense_a", "dense_b", "routed_a", "routed_b")
]
WORDS = [
    f"tensor_memory:{name}"
    for name in ("tiny", "tiny_decaying", "small", "model_30m", "softmax_tiny", "hybrid")
]
ALONE = [*SCRATCH, "mixture_of_chapters:with_memory", "mixture_of_chapters:control"]
BASES = {
    "qwen_adapter:memory_for_1_5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1_536,
        intermediate_size=8_960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
    ),
    "llama_adapter:memory_for_llama_3_2_1b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ),
}
SMALL = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def run(arguments, capsys):
    code = cli.run(["plan", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def planned(arguments, capsys):
    code, out, err = run([*arguments, "--json"], capsys)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def base(tmp_path):
    SMALL.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize("factory", ALONE)
def test_models_from_scratch(factory, capsys):
    found = planned([factory], capsys)
    assert found["factory"] == factory
    assert found["trainable"] > 0
    assert found["flops_per_token"]["training"] == 3 * found["flops_per_token"]["forward"] or (
        "router" in found["groups"]
    )


def test_the_model_of_371_million(capsys):
    found = planned(["mixture_of_chapters:with_memory"], capsys)
    assert found["trainable"] == 371_273_472
    assert found["bytes"]["weights"] >= 4 * found["trainable"]
    assert found["bytes"]["optimizer"] == 8 * found["trainable"]


@pytest.mark.parametrize("factory", WORDS)
def test_models_that_take_a_vocabulary(factory, capsys):
    found = planned([factory, "--set", "vocab_size=100"], capsys)
    assert found["trainable"] > 0


@pytest.mark.parametrize("factory", BASES)
def test_adapters_on_bases_of_which_only_the_configuration_is_there(factory, tmp_path, capsys):
    BASES[factory].save_pretrained(tmp_path)
    found = planned([factory, "--base", str(tmp_path)], capsys)
    base = found["groups"]["base"]
    assert base["trainable"] == 0
    assert base["frozen"] > 1e9
    # In bfloat16, as the configuration says, beside a memory in float32.
    memory = found["trainable"] * 4
    assert base["frozen"] * 2 + memory <= found["bytes"]["weights"] < base["frozen"] * 2.1 + memory
    wide = planned([factory, "--base", str(tmp_path), "--base-dtype", "float32"], capsys)
    assert wide["bytes"]["weights"] > base["frozen"] * 4


@pytest.mark.parametrize("function", ["memory_alone", "lora_alone", "memory_and_lora"])
def test_stacks_around_a_model(function, base, capsys):
    groups = planned([f"memory_and_lora:{function}", "--base", base], capsys)["groups"]
    assert ("lora" in groups) == ("lora" in function)
    assert ("bank" in groups) == ("memory" in function)


def test_it_reads_well_at_80_columns(base, capsys):
    code, out, err = run(["llama_adapter:memory_sized_by", "--base", base], capsys)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "llama_adapter:memory_sized_by: MemoryAdapter"
    rows = {" ".join(line.split()[:-2]): line.split()[-2:] for line in lines[2:] if line}
    assert rows["bank 1"] == ["16,384", "0"]
    assert "64.0 KiB, 512 memory tokens" in out
    assert "AdamW state" in out


def test_a_file_and_what_lies_beside_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.run(["factories", "copy", "from_scratch", str(tmp_path)]) == 0
    capsys.readouterr()
    found = planned([f"{tmp_path / 'from_scratch.py'}:vanilla_tiny"], capsys)
    assert found["trainable"] == planned(["from_scratch:vanilla_tiny"], capsys)["trainable"]


def test_an_installed_user_has_the_shipped_names_too(tmp_path):
    root = Path(__file__).parents[2]
    code = (
        "import importlib.util, sys\n"
        f"sys.path[:] = [{str(root / 'src')!r}] + [p for p in sys.path if p != {str(root)!r}]\n"
        "assert importlib.util.find_spec('factories') is None\n"
        "from memtx import cli\n"
        "sys.exit(cli.run(['plan', 'tensor_memory:hybrid', '--set', 'vocab_size=9']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensor_memory:hybrid: MemoryTransformer")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


MISTAKES = {
    "no function": (["from_scratch"], "FACTORY must be MODULE:FUNCTION, got FACTORY='from_scr"),
    "another function": (["from_scratch:no"], "got FUNCTION='no'; it has attend_tiny, think"),
    "no module": (["nowhere:f"], "got MODULE='nowhere' (ModuleNotFoundError: No module named"),
    "no file": (["nowhere.py:f"], "(FileNotFoundError: no file nowhere.py)"),
    "no vocabulary": (["tensor_memory:small"], "got missing=['vocab_size'], unknown=[]; give"),
    "no base": (["qwen_adapter:memory_for_1_5b"], "by --set NAME=VALUE and --base MODEL, or"),
    "a lesson": (["qwen_adapter:tiny"], "got missing=['folder', 'seed', 'parallelism']"),
    "too much": (
        ["from_scratch:vanilla_tiny", "--set", "dim=2"],
        "just what it takes, nothing, got missing=[], unknown=['dim']",
    ),
    "no pair": (["tensor_memory:small", "--set", "vocab"], "NAME=VALUE, got --set='vocab'"),
    "a value": (
        ["tensor_memory:small", "--set", "vocab_size=0"],
        "got ValueError: TensorMemoryLM: vocab_size must be an integer of at least 1",
    ),
    "a batch": (["from_scratch:vanilla_tiny", "--batch", "0"], "--batch must be at least 1, got"),
    "a length": (["from_scratch:vanilla_tiny", "--length", "-1"], "got --length=-1;"),
    "a dtype alone": (
        ["from_scratch:vanilla_tiny", "--base-dtype", "bfloat16"],
        "--base-dtype needs a base, got --base-dtype=bfloat16",
    ),
    "no such base": (
        ["llama_adapter:memory_sized_by", "--base", "/nowhere/at/all"],
        "can be reached, got --base=/nowhere/at/all (",
    ),
    "no model": (["parts:zero_linear"], "missing=['in_features', 'out_features']"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, capsys):
    arguments, wanted = MISTAKES[name]
    code, out, err = run(arguments, capsys)
    assert (code, out) == (1, "")
    assert err.startswith("memtx plan: ")
    assert err.count("\n") == 1
    assert wanted in err


def test_a_file_that_breaks_and_one_that_gives_no_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    broken = write(tmp_path / "broken_one.py", "raise RuntimeError('mine')")
    code, _, err = run([f"{broken}:f"], capsys)
    assert (code, "(RuntimeError: mine)" in err) == (1, True)
    numbers = write(tmp_path / "numbers_one.py", "def f(): return 3\ndef g(): return 1 / 0\n")
    code, _, err = run([f"{numbers}:f"], capsys)
    assert (code, "as `model` or `adapter`, got int; name another" in err) == (1, True)
    code, _, err = run([f"{numbers}:g"], capsys)
    assert (code, "got ZeroDivisionError: division by zero" in err) == (1, True)
    stranger = "from torch import nn\ndef h(): return nn.Conv1d(2, 2, 1)\n"
    code, _, err = run([f"{write(tmp_path / 'stranger_one.py', stranger)}:h"], capsys)
    assert (code, "got part='Conv1d'; count it by" in err) == (1, True)


def test_a_base_of_another_dtype_is_refused(base, capsys):
    arguments = ["llama_adapter:memory_sized_by", "--base", base, "--base-dtype", "int8"]
    code, _, err = run(arguments, capsys)
    assert (code, "got --base-dtype=int8; for example bfloat16." in err) == (1, True)


def test_another_optimizer_exits_with_2():
    with pytest.raises(SystemExit) as caught:
        cli.run(["plan", "from_scratch:vanilla_tiny", "--optimizer", "Lion"])
    assert caught.value.code == 2


def test_help_has_the_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(["plan", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(example in text for example in command.EXAMPLES)
    assert command.OPTIMIZERS == OPTIMIZERS


@pytest.mark.parametrize(
    ("pair", "wanted"), [("a=3", 3), ("a=x", "x"), ("a=[1]", [1]), ("a=", ""), ("a=b=c", "b=c")]
)
def test_values_are_json_where_they_can_be(pair, wanted):
    assert find.settings_of([pair], command="memtx plan") == {"a": wanted}


def test_nothing_is_allocated(tmp_path):
    BASES["qwen_adapter:memory_for_1_5b"].save_pretrained(tmp_path)
    factory = find.find_factory("qwen_adapter:memory_for_1_5b", command="memtx plan")
    base = command._base(str(tmp_path), dtype=None)
    model = command._made(factory, given={"base": base}, name="it")
    held = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in held} == {"meta"}
    assert {p.dtype for p in model.base.parameters()} == {torch.bfloat16}
