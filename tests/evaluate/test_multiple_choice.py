"""Multiple choice, against a plain loop over transformers."""

import pytest
import torch

from memtx.data import Question
from memtx.evaluate import Confidence, MultipleChoice, multiple_choice
from memtx.evaluate.multiple_choice import continuation_row, shortened
from tests.evaluate import models
from tests.evaluate.questions import arc_easy
from tests.train import tiny


def asked(model, tokenizer, questions, *, batch_size, memories) -> MultipleChoice:
    return multiple_choice(
        model=model,
        tokenizer=tokenizer,
        questions=questions,
        max_length=512,
        batch_size=batch_size,
        memories=memories,
    )


@torch.no_grad()
def plain(model, tokenizer, question: Question) -> list[float]:
    found = []
    for choice in question.choices:
        known = len(tokenizer(question.context)["input_ids"])
        ids = tokenizer(f"{question.context} {choice}", return_tensors="pt")["input_ids"]
        log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        found.append(log_probs.gather(1, ids[0, 1:, None])[known - 1 :].sum().item())
    return found


def test_the_real_model_on_real_questions(data_folder):
    model, tokenizer = tiny.stories(data_folder)
    questions = arc_easy(data_folder, 25)
    wanted = [plain(model, tokenizer, question) for question in questions]
    given = asked(model, tokenizer, questions, batch_size=16, memories=None)
    for one, other in zip(given.log_probs, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    right = [
        max(range(len(each)), key=each.__getitem__) == question.answer
        for each, question in zip(wanted, questions, strict=True)
    ]
    assert given.accuracy == sum(right) / len(right)
    norms = [
        [value / len(text) for value, text in zip(each, question.choices, strict=True)]
        for each, question in zip(wanted, questions, strict=True)
    ]
    right = [
        max(range(len(each)), key=each.__getitem__) == question.answer
        for each, question in zip(norms, questions, strict=True)
    ]
    assert given.accuracy_norm == sum(right) / len(right)


def test_lengths_are_those_of_characters_and_of_bytes():
    question = Question(context="x", choices=["éé", "abc"], answer=0)
    found = MultipleChoice(questions=[question], log_probs=[[-2.1, -3.0]])
    assert (found.accuracy, found.accuracy_norm, found.accuracy_bytes) == (1.0, 0.0, 1.0)
    metrics = found.metrics(Confidence(level=0.95, resamples=10, seed=0))
    assert {name: metric.value for name, metric in metrics.items()} == {
        "accuracy": 1.0,
        "accuracy_norm": 0.0,
        "accuracy_bytes": 1.0,
    }
    assert {metric.interval.method for metric in metrics.values()} == {"wilson"}


def test_each_question_reads_its_own_memory():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    library = models.two_memories()
    question = Question(context="The boat", choices=["rained", "played there"], answer=0)
    both = asked(library, tokenizer, [question] * 2, batch_size=9, memories=["anna", "bob"])
    for number, name in enumerate(["anna", "bob"]):
        library.activate(name)
        alone = asked(library, tokenizer, [question], batch_size=1, memories=None)
        assert both.log_probs[number] == pytest.approx(alone.log_probs[0], abs=1e-4)
    assert both.log_probs[0] != pytest.approx(both.log_probs[1], abs=1e-3)


def test_spaces_go_to_the_continuation_and_an_empty_context_is_the_begin_token(data_folder):
    tokenizer = tiny.stories(data_folder)[1]
    whole = tokenizer("Tim  saw")["input_ids"]
    known = tokenizer("Tim")["input_ids"]
    row = continuation_row(tokenizer, context="Tim  ", continuation="saw")
    assert row == (known, whole[len(known) :])
    context, predicted = continuation_row(tokenizer, context="", continuation="saw")
    assert context == [tokenizer.bos_token_id]
    assert predicted == tokenizer("saw", add_special_tokens=False)["input_ids"]


def test_a_long_context_loses_its_beginning():
    assert shortened(([1, 2, 3, 4], [5, 6]), max_length=3) == ([3, 4], [5, 6])
    assert shortened(([1, 2], [5, 6]), max_length=9) == ([1, 2], [5, 6])
    message = "multiple_choice: what follows .* got tokens=3, max_length=2;"
    with pytest.raises(ValueError, match=message):
        shortened(([1], [2, 3, 4]), max_length=2)


def test_what_cannot_be_asked_is_refused():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    with pytest.raises(ValueError, match="multiple_choice: .* got questions=0;"):
        asked(models.bare(), tokenizer, [], batch_size=1, memories=None)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="continuation_row: .* got context='';"):
        continuation_row(tokenizer, context="", continuation="saw")
