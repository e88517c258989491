"""`memtx ask`: both answers side by side, from the command line and from standard input."""

import io
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from memtx import cli, load, save
from memtx.cli import ask as command
from memtx.generate import greedy
from tests.evaluate import models
from tests.train import tiny

# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PROMPTS = [fact.prompt for fact in tiny.FACTS[:2]]


def on_lora():
    """A memory over a LoRA in the base."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    made = tiny.adapter(model=get_peft_model(tiny.base(seed=0), config)).eval()
    tiny.perturb(made)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, a memory for it, one with a LoRA below, and a whole model, with their tokenizers."""
    folder = tmp_path_factory.mktemp("asked")
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tiny.base(seed=0).save_pretrained(folder / "base")
    save(models.adapter(), folder / "memory")
    save(on_lora(), folder / "both")
    save(models.whole(), folder / "whole")
    for name in ("base", "whole"):
        tokenizer.save_pretrained(folder / name)
    return folder


def call(capsys, folder, given):
    code = cli.run(["ask", *(str(each) for each in given)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def said(model, prompt, *, most):
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    (tokens,) = greedy(
        model=model,
        prompts=[tokenizer(prompt)["input_ids"]],
        max_new_tokens=most,
        batch_size=1,
        pad_token_id=0,
        eos_token_id=0,
    )
    return " ".join(tokenizer.decode(tokens).split())


@pytest.mark.parametrize("name", ["memory", "both"])
def test_both_answers_are_those_of_the_models(name, folder, capsys):
    given = [folder / name, "--base", folder / "base", "--max-new-tokens", "5", "--json", *PROMPTS]
    code, out, err = call(capsys, folder, given)
    assert (code, err) == (0, f"loading {folder / name}\n")
    saved = on_lora() if name == "both" else models.adapter()
    answers = [json.loads(line) for line in out.splitlines()]
    # Off is the bare base, without the LoRA either.
    assert answers == [
        {
            "question": prompt,
            "memory_off": said(tiny.base(seed=0), prompt, most=5),
            "memory_on": said(saved, prompt, most=5),
        }
        for prompt in PROMPTS
    ]
    assert answers[0]["memory_on"] != answers[0]["memory_off"]


def test_one_side_alone_and_standard_input(folder, capsys, monkeypatch):
    base = ["--base", folder / "base"]
    off, on = (said(model, PROMPTS[0], most=24) for model in (models.bare(), models.adapter()))
    for flag, line in {"--off": f"  memory off: {off}", "--on": f"  memory on:  {on}"}.items():
        monkeypatch.setattr("sys.stdin", io.StringIO(f"\n {PROMPTS[0]} \n\n"))
        code, out, _ = call(capsys, folder, [folder / "memory", *base, flag, "-"])
        assert (code, out) == (0, f"{PROMPTS[0]}\n{line.rstrip()}\n")


def test_nothing_asked_is_nothing_answered(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call(capsys, folder, [folder / "whole", "-"])[:2] == (0, "")


def test_a_whole_model_answers_once(folder, capsys):
    given = [folder / "whole", "--max-new-tokens", "4", PROMPTS[0]]
    code, out, err = call(capsys, folder, given)
    assert (code, err) == (0, f"loading {folder / 'whole'}\n")
    answer = said(load(folder / "whole"), PROMPTS[0], most=4)
    assert out == f"{PROMPTS[0]}\n" + f"  answer:     {answer}".rstrip() + "\n"


def test_a_tokenizer_that_ends_every_text_ends_no_question(folder, tmp_path, capsys):
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tiny.set_end(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    base = ["--base", folder / "base", "--json"]
    plain = call(capsys, folder, [folder / "memory", *base, PROMPTS[0]])[1]
    ended = call(capsys, folder, [folder / "memory", *base, "--tokenizer", tmp_path, PROMPTS[0]])[1]
    assert plain == ended


def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys):
    base = ["--base", folder / "base"]
    cases = {
        "PATH must be a folder with a saved memory or whole model, got PATH=": [tmp_path, "x"],
        "--max-new-tokens must be at least 1, got --max-new-tokens=0;": [
            folder / "memory",
            *base,
            "--max-new-tokens",
            "0",
            "x",
        ],
        "- must stand alone, got 2 questions;": [folder / "memory", *base, "x", "-"],
        "QUESTION must be a text, got QUESTION=' ';": [folder / "memory", *base, " "],
        "--off is for a memory, got PATH=": [folder / "whole", "--off", "x"],
        "--base is for a memory, got base=": [folder / "whole", *base, "x"],
        f"memtx ask: --base must be a folder of a model and its tokenizer, or an id of the hub "
        f"that can be reached, got --base={tmp_path} (": [
            folder / "memory",
            "--base",
            tmp_path,
            "x",
        ],
    }
    for message, given in cases.items():
        code, out, err = call(capsys, folder, given)
        told = err.removeprefix(f"loading {given[0]}\n")
        assert (code, out) == (1, ""), given
        assert message in told
        assert told.count("\n") == 1


def test_a_tokenizer_of_another_model_is_told(folder, tmp_path, capsys):
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.add_tokens(["Ravlonia"])
    tokenizer.save_pretrained(tmp_path)
    given = [folder / "memory", "--base", folder / "base", "--tokenizer", tmp_path, PROMPTS[0]]
    code, out, err = call(capsys, folder, given)
    assert (code, out) == (1, "")
    assert "the tokenizer must be the model's own, got a token that the model does not" in err


def test_help_and_an_incomplete_line(folder, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(["ask", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(example in text for example in command.EXAMPLES)
    for given in ([str(folder)], [str(folder), "--on", "--off", "x"]):
        with pytest.raises(SystemExit) as end:
            cli.run(["ask", *given])
        assert end.value.code == 2
