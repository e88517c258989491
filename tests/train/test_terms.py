"""Terms of the loss, against their definitions, and the objective that holds them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from memtx import HybridRouting, Memory, MemoryLibrary
from memtx.data.protocols import Batch
from memtx.train import NextTokenLoss, Objective
from tests import routing
from tests.train import tiny

pytestmark = pytest.mark.shapes


@pytest.fixture
def model():
    return tiny.adapter(model=tiny.base(seed=0)).eval()


@pytest.fixture
def facts() -> Batch:
    return tiny.fact_batches(batch_size=5)[0]


@pytest.fixture
def texts() -> Batch:
    return tiny.text_batches(batch_size=3)[0]


def total(term, model, batch):
    """The sum of the term's own component."""
    return term.totals(model, batch)[0]


def count(term, model, batch):
    """How many things that is a sum over."""
    return term.counts(model, batch)[0]


def memory_gradients(model, loss) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.memory_parameters())))


def test_next_token_loss_is_that_of_transformers(model, facts):
    tiny.perturb(model)
    term = tiny.facts_term()
    mean = total(term, model, facts) / count(term, model, facts)
    assert (facts["attention_mask"] == 0).any()
    assert mean.item() == pytest.approx(model(**facts).loss.item(), rel=1e-6)


def test_next_token_loss_of_a_plain_model(facts):
    model = tiny.base(seed=0)
    term = tiny.facts_term()
    mean = total(term, model, facts) / count(term, model, facts)
    assert mean.item() == pytest.approx(model(**facts).loss.item(), rel=1e-6)


def test_next_token_loss_of_the_real_model(data_folder):
    model, tokenizer = tiny.stories(data_folder)
    ids = torch.tensor([tokenizer("Once upon a time there was a cat.")["input_ids"]])
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    term = tiny.facts_term()
    mean = total(term, model, batch) / count(term, model, batch)
    assert mean.item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)


def test_count_is_of_labels_with_a_token_before_them(model, facts):
    term = tiny.facts_term()
    assert count(term, model, facts) == (facts["labels"] != -100).sum()  # no fact's prompt is empty
    every_token = {**facts, "labels": facts["input_ids"]}
    assert count(term, model, every_token) == facts["input_ids"].numel() - 5


def test_a_batch_without_labels_gives_zero_and_a_gradient_of_zero(model, facts):
    term = tiny.facts_term()
    empty = {**facts, "labels": torch.full_like(facts["labels"], -100)}
    nothing = total(term, model, empty)
    assert (nothing.item(), count(term, model, empty).item()) == (0.0, 0)
    assert all((gradient == 0).all() for gradient in memory_gradients(model, nothing))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("term", [tiny.facts_term(), tiny.locality_term(weight=1.0)])
def test_chunks_change_neither_loss_nor_gradient(model, facts, term, chunk):
    tiny.perturb(model)
    wanted = total(replace(term, chunk=10**6), model, facts)
    given = total(replace(term, chunk=chunk), model, facts)
    assert given.item() == pytest.approx(wanted.item(), rel=1e-6)
    pairs = zip(memory_gradients(model, given), memory_gradients(model, wanted), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_locality_of_a_fresh_memory_is_exactly_zero(model, texts):
    harm = total(tiny.locality_term(weight=1.0), model, texts)
    assert harm.item() == 0.0
    assert harm.requires_grad


def test_locality_is_the_divergence_from_the_base(model, texts):
    tiny.perturb(model)
    given = total(tiny.locality_term(weight=1.0), model, texts).item()
    inputs = {key: texts[key] for key in ("input_ids", "attention_mask")}
    on = model(**inputs).logits.log_softmax(-1)
    with model.disabled():
        off = model(**inputs).logits.log_softmax(-1)
    each = (off.exp() * (off - on)).sum(-1)
    assert given == pytest.approx((each * texts["attention_mask"]).sum().item(), rel=1e-5)
    assert given > 0.1


def test_padding_counts_in_neither_sum_nor_number(model, texts):
    tiny.perturb(model)
    term = tiny.locality_term(weight=1.0)
    lengths = texts["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    assert count(term, model, texts) == sum(lengths)
    alone = [
        total(term, model, {key: value[row : row + 1, :length] for key, value in texts.items()})
        for row, length in enumerate(lengths)
    ]
    assert total(term, model, texts).item() == pytest.approx(sum(alone).item(), rel=1e-5)


def test_locality_leaves_the_switch_as_it_was(model, texts):
    term = tiny.locality_term(weight=1.0)
    tiny.perturb(model)
    total(term, model, texts)
    assert model.is_enabled()
    with model.disabled():
        assert total(term, model, texts).item() == 0.0
        assert not model.is_enabled()


def test_locality_of_the_active_memory_of_a_library_is_that_of_an_adapter(model, texts):
    tiny.perturb(model)
    term = tiny.locality_term(weight=1.0)
    wanted = total(term, model, texts).item()
    memory = Memory(banks=list(model.banks), insertions=list(model.insertions))
    library = MemoryLibrary(base=model.remove(), memories={"one": memory})
    assert total(term, library, texts).item() == 0.0
    library.activate("one")
    given = total(term, library, texts)
    assert given.item() == pytest.approx(wanted, rel=1e-5)
    given.backward()
    assert all(p.grad.abs().sum() > 0.0 for p in memory.parameters())


def test_locality_refuses_a_model_whose_memory_cannot_be_switched():
    expected = (
        "LocalityLoss: the model must be a MemoryAdapter, a MemoryLibrary or a PEFT .* "
        "got model='LlamaForCausalLM';"
    )
    with pytest.raises(ValueError, match=expected):
        Objective(model=tiny.base(seed=0), terms=[tiny.locality_term(weight=1.0)])


def test_objective_gives_sums_and_counts_by_term(model, facts, texts):
    tiny.perturb(model)
    terms = [tiny.locality_term(weight=3.0), tiny.facts_term()]
    objective = Objective(model=model, terms=terms)
    batches = {"facts": facts, "background": texts}
    assert objective.streams == ["background", "facts"]
    assert objective.weights == {"locality": 3.0, "facts": 1.0}
    counts = [count(terms[0], model, texts).item(), count(terms[1], model, facts).item()]
    assert objective.counts(batches).tolist() == counts
    totals = [total(terms[0], model, texts).item(), total(terms[1], model, facts).item()]
    assert objective(batches).tolist() == pytest.approx(totals)


def test_terms_may_share_a_stream(model):
    term = tiny.facts_term()
    second = replace(term, name="again")
    assert Objective(model=model, terms=[term, second]).streams == ["facts"]


def test_router_losses_are_components_of_the_loss_on_text(facts):
    model = tiny.routed_adapter(model=tiny.base(seed=0), strategy=HybridRouting(window=2)).eval()
    term = replace(tiny.facts_term(), weight=2.0)
    names = ["LoadBalanceLoss(0.5)", "ChapterVarianceLoss(0.3)", "RouterZLoss(0.25)"]
    own = {f"facts/{name}": weight for name, weight in zip(names, (0.5, 0.3, 0.25), strict=True)}
    assert term.weights(model) == {"facts": 2.0} | own
    labels = (facts["labels"] != -100).sum().item()
    assert term.counts(model, facts).tolist() == [labels, 1, 1, 1]
    text, *losses = (term.totals(model, facts) / term.counts(model, facts)).tolist()
    found = model.halves().router_losses()
    assert [found[name][0].item() for name in names] == pytest.approx(losses)
    loss = model(**facts, use_cache=False).loss.item()
    weighted = 0.5 * losses[0] + 0.3 * losses[1] + 0.25 * losses[2]
    assert text + weighted == pytest.approx(loss, rel=1e-6)


def test_router_losses_of_a_composed_model(facts):
    losses = tiny.router_losses()
    model = routing.transformer(HybridRouting(window=2), losses=losses)
    batch = {key: value % 64 if key == "input_ids" else value for key, value in facts.items()}
    batch["labels"] = torch.where(facts["labels"] == -100, -100, batch["input_ids"])
    term = tiny.facts_term()
    means = term.totals(model, batch) / term.counts(model, batch)
    weights = torch.tensor(list(term.weights(model).values()))
    assert len(weights) == 4
    assert (weights * means).sum().item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)


def test_a_memory_that_is_off_has_router_losses_of_zero(facts):
    model = tiny.routed_adapter(model=tiny.base(seed=0), strategy=HybridRouting(window=2))
    term = tiny.facts_term()
    with model.disabled():
        assert term.totals(model, facts)[1:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("terms", "names"),
    [([], "\\[\\]"), ([tiny.facts_term(), tiny.facts_term()], "\\['facts', 'facts'\\]")],
)
def test_objective_refuses_no_terms_and_equal_names(terms: list[NextTokenLoss], names):
    with pytest.raises(ValueError, match=f"Objective: .* distinct names, got names={names};"):
        Objective(model=nn.Identity(), terms=terms)


@pytest.mark.parametrize(("chunk", "weight"), [(0, 1.0), (8, -1.0), (8, float("nan"))])
def test_values_out_of_range_are_refused(chunk, weight):
    got = "chunk=0" if chunk == 0 else f"weight={weight}"
    with pytest.raises(ValueError, match=rf"^NextTokenLoss: .* got {got}; "):
        NextTokenLoss(name="text", stream="text", weight=weight, chunk=chunk)
