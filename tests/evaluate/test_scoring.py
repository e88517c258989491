"""Scores of continuations, against a plain call for each row alone."""

import pytest
import torch

from memtx.evaluate import Scored, StridedWindows, perplexity, recall, score
from tests.evaluate import models
from tests.train import tiny

pytestmark = [
    pytest.mark.shapes,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

ROWS = [
    ([5], [6]),
    ([7, 8, 9, 10, 11, 12, 13], [14, 15]),
    ([20, 21], [22, 23, 24, 25, 26]),
    ([30, 31, 32], [33]),
]


@torch.no_grad()
def plain(model, row) -> Scored:
    """From the logits of the whole row, all of them made."""
    context, predicted = row
    logits = model(input_ids=torch.tensor([[*context, *predicted]])).logits[0].float()
    places = logits[len(context) - 1 : -1].log_softmax(dim=-1)
    log_probs = places[range(len(predicted)), predicted].tolist()
    return Scored(log_probs=log_probs, likeliest=places.argmax(dim=-1).tolist(), tokens=predicted)


def expect_close(given: list[Scored], wanted: list[Scored]) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert one.likeliest == other.likeliest
        assert one.tokens == other.tokens


def scores(model, *, batch_size, memories):
    return score(model=model, rows=ROWS, batch_size=batch_size, fill=0, memories=memories)


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_batches_of_unequal_rows_equal_plain_calls(kind, batch_size):
    model = models.KINDS[kind]()
    given = scores(model, batch_size=batch_size, memories=None)
    expect_close(given, [plain(model, row) for row in ROWS])


def test_a_router_that_asks_the_prompt_sees_the_context_alone():
    model = models.prompted()
    together = scores(model, batch_size=9, memories=None)
    expect_close(together, scores(model, batch_size=1, memories=None))
    # What follows the first predicted token cannot change what was made of it.
    (context, predicted), first = ROWS[2], together[2].log_probs[0]
    changed = score(
        model=model, rows=[(context, [predicted[0], 99, 98])], batch_size=1, fill=0, memories=None
    )
    assert changed[0].log_probs[0] == pytest.approx(first, abs=1e-5)


def test_each_row_reads_its_own_memory_of_a_library():
    library = models.two_memories()
    choices = ["anna", None, "bob", "bob"]
    given = scores(library, batch_size=9, memories=choices)
    expect_close(given, scores(library, batch_size=1, memories=choices))
    for number, choice in enumerate(choices):
        library.activate(choice)
        expect_close([given[number]], [plain(library, ROWS[number])])
    library.activate("anna")
    assert given[3].total != pytest.approx(plain(library, ROWS[3]).total, abs=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_a_tokenizer_changes_nothing(side):
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.padding_side = side
    model = models.adapter()
    windows = StridedWindows(max_length=20, stride=10)
    found = perplexity(
        model=model, tokenizer=tokenizer, documents=tiny.DOCUMENTS, windows=windows, batch_size=4
    )
    rows = [row for text in tiny.DOCUMENTS for row in windows(tokenizer(text)["input_ids"])]
    wanted = [-plain(model, row).total for row in rows]
    assert found.nats == pytest.approx(wanted, rel=1e-5)
    one, all_together = (
        recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=size).answers
        for size in (1, 5)
    )
    assert one == all_together


def test_the_mode_is_given_back_and_no_gradient_is_kept():
    model = models.adapter().train()
    model.base.model.layers[0].eval()
    before = {module: module.training for module in model.modules()}
    scores(model, batch_size=2, memories=None)
    assert {module: module.training for module in model.modules()} == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"score: there must be something to predict, .* got rows=0, "),
        ([([1], [2]), ([], [2])], r"got rows=2, without context or continuation=\[1\];"),
        ([([1], [])], r"got rows=1, without context or continuation=\[0\];"),
    ],
)
def test_rows_without_a_prediction_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        score(model=models.bare(), rows=rows, batch_size=1, fill=0, memories=None)


def test_sizes_and_memories_are_checked():
    with pytest.raises(ValueError, match="score: batch_size must .* got batch_size=0;"):
        scores(models.bare(), batch_size=0, memories=None)
    message = "score: memories must .* got model='LlamaForCausalLM', memories=4, items=4;"
    with pytest.raises(ValueError, match=message):
        scores(models.bare(), batch_size=1, memories=[None] * 4)
    message = "got model='MemoryLibrary', memories=1, items=4;"
    with pytest.raises(ValueError, match=message):
        scores(models.two_memories(), batch_size=1, memories=["anna"])
