"""Greedy answers, against the argmax of whole forwards without a cache."""

import pytest
import torch

from memtx.generate import greedy, padding_token
from tests.train import tiny

pytestmark = pytest.mark.shapes
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


@torch.no_grad()
def argmax_by_step(model, prompt: list[int], *, steps: int) -> list[int]:
    """One prompt alone, unpadded, read anew for every token."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def answers_of(model, *, batch_size: int, eos_token_id: int | None) -> list[list[int]]:
    return greedy(
        model=model,
        prompts=PROMPTS,
        max_new_tokens=12,
        batch_size=batch_size,
        pad_token_id=0,
        eos_token_id=eos_token_id,
    )


@pytest.fixture
def model():
    """An adapter whose memory speaks."""
    made = tiny.adapter(model=tiny.base(seed=0)).eval()
    tiny.perturb(made)
    return made


@pytest.fixture
def wanted(model):
    answers = [argmax_by_step(model, prompt, steps=12) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS)
    return answers


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_rows_of_different_length_get_the_argmax(model, wanted, batch_size):
    assert answers_of(model, batch_size=batch_size, eos_token_id=None) == wanted


def test_the_memory_takes_part(model, wanted):
    with model.disabled():
        without = answers_of(model, batch_size=4, eos_token_id=None)
    assert without == [argmax_by_step(model.remove(), prompt, steps=12) for prompt in PROMPTS]
    assert without != wanted


def test_an_answer_stops_before_its_end_token(model, wanted):
    end = wanted[0][3]
    cut = [answer[: answer.index(end)] if end in answer else answer for answer in wanted]
    assert len(cut[0]) <= 3
    assert max(map(len, cut)) == 12  # another row goes on
    assert answers_of(model, batch_size=4, eos_token_id=end) == cut


def test_an_end_token_at_once_gives_an_empty_answer(model, wanted):
    assert answers_of(model, batch_size=4, eos_token_id=wanted[2][0])[2] == []


def test_the_settings_of_a_pretrained_model_do_not_bend_the_answers(model, wanted):
    # As the files of chat models have them: greedy must still be the argmax of the logits.
    settings = model.base.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = True, 0.7, 0.8, 20
    settings.repetition_penalty, settings.no_repeat_ngram_size = 1.5, 2
    settings.eos_token_id, settings.num_beams = wanted[0][2], 3
    assert answers_of(model, batch_size=4, eos_token_id=None) == wanted


@pytest.mark.parametrize("pad_token_id", [17, PROMPTS[1][0], PROMPTS[0][1]])
def test_the_token_in_masked_places_does_not_matter(model, wanted, pad_token_id):
    # Not even where a prompt has it: its mask is given, not guessed from the token.
    given = greedy(
        model=model,
        prompts=PROMPTS,
        max_new_tokens=12,
        batch_size=4,
        pad_token_id=pad_token_id,
        eos_token_id=None,
    )
    assert given == wanted


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_given_back(model, training):
    model.train(training)
    answers_of(model, batch_size=4, eos_token_id=None)
    assert model.training is training
    assert model.base.training is training


def test_answers_are_those_of_evaluation_mode(model, wanted):
    for insertion in model.insertions:
        insertion.sublayers[0].sublayer.dropout = 0.9
    model.train()
    assert answers_of(model, batch_size=4, eos_token_id=None) == wanted


def test_no_prompts_give_no_answers(model):
    given = greedy(
        model=model,
        prompts=[],
        max_new_tokens=1,
        batch_size=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert given == []


def test_padding_token_is_pad_then_end_then_zero():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.eos_token = "a"
    end = tokenizer.convert_tokens_to_ids("a")
    assert padding_token(tokenizer) == end != 0
    tokenizer.pad_token = "b"
    assert padding_token(tokenizer) == tokenizer.convert_tokens_to_ids("b") != end
    tokenizer.pad_token = tokenizer.eos_token = None
    assert padding_token(tokenizer) == 0


def test_padding_token_zero_is_a_token():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.pad_token, tokenizer.eos_token = "<end>", "a"
    assert padding_token(tokenizer) == 0
