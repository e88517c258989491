"""Efficacy, generalisation and specificity, against a plain loop and against exact recall."""

from statistics import fmean

import pytest
import torch

from memtx.data import Edit, EditFields, Fact, fact_tokens, read_edits
from memtx.evaluate import Confidence, editing, recall
from tests.evaluate import models
from tests.train import tiny

CONFIDENCE = Confidence(level=0.95, resamples=50, seed=0)
COUNTERFACT = EditFields(
    prompt="prompt",
    target_new="target_new",
    target_true="ground_truth",
    paraphrases="rephrase_prompt",
    neighbours="locality_prompt",
    neighbour_answers="locality_ground_truth",
)
EDITS = [
    Edit(
        prompt=fact.prompt,
        target_new=fact.answer,
        target_true=other.answer,
        paraphrases=[f"They say: {fact.prompt}", f"Again, {fact.prompt}"][: number % 3],
        neighbours=[other, Fact(prompt="It", answer="rained")][: 1 + number % 2],
    )
    for number, (fact, other) in enumerate(
        zip(tiny.FACTS, [*tiny.FACTS[1:], tiny.FACTS[0]], strict=True)
    )
]


def measured(model, tokenizer, edits, *, batch_size, base, memories):
    return editing(
        model=model,
        tokenizer=tokenizer,
        edits=edits,
        batch_size=batch_size,
        base=base,
        memories=memories,
    )


@torch.no_grad()
def tokens_of(model, tokenizer, prompt, answer):
    """Probability of each token of an answer, and what is likeliest at their places."""
    known, wanted = fact_tokens(tokenizer, Fact(prompt=prompt, answer=answer))
    places = model(input_ids=torch.tensor([known + wanted])).logits[0, len(known) - 1 : -1]
    probs = places.softmax(dim=-1)[range(len(wanted)), wanted]
    return probs, places.argmax(dim=-1).tolist(), wanted


def plain(model, tokenizer, edits):
    """The definitions, written out."""

    def probability(prompt, answer):
        return tokens_of(model, tokenizer, prompt, answer)[0].log().mean().exp().item()

    def exact(prompt, answer):
        _, likeliest, wanted = tokens_of(model, tokenizer, prompt, answer)
        return float(likeliest == wanted)

    def hits(prompt, answer):
        _, likeliest, wanted = tokens_of(model, tokenizer, prompt, answer)
        return fmean(a == b for a, b in zip(likeliest, wanted, strict=True))

    found = {}
    for name in ("efficacy", "generalisation", "specificity"):
        asked = [
            {
                "efficacy": [(e.prompt, e.target_new, e.target_true)],
                "generalisation": [(p, e.target_new, e.target_true) for p in e.paraphrases],
                "specificity": [(n.prompt, n.answer, e.target_new) for n in e.neighbours],
            }[name]
            for e in edits
        ]
        asked = [each for each in asked if each]
        differences = [[probability(p, a) - probability(p, b) for p, a, b in e] for e in asked]
        found[f"{name}_magnitude"] = fmean(fmean(e) for e in differences)
        found[f"{name}_score"] = fmean(fmean(float(d > 0) for d in e) for e in differences)
        found[f"{name}_exact"] = fmean(fmean(exact(p, a) for p, a, _ in e) for e in asked)
        found[f"{name}_tokens"] = fmean(fmean(hits(p, a) for p, a, _ in e) for e in asked)
    return found


def values(found):
    return {name: metric.value for name, metric in found.metrics(CONFIDENCE).items()}


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_definitions_written_out(batch_size):
    model, tokenizer = models.adapter(), tiny.byte_tokenizer(crosses_words=False)
    found = measured(model, tokenizer, EDITS, batch_size=batch_size, base=None, memories=None)
    wanted = plain(model, tokenizer, EDITS)
    given = values(found)
    assert {name: given[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    shares = [wanted[f"{kind}_score"] for kind in ("efficacy", "generalisation", "specificity")]
    harmonic = 0.0 if 0 in shares else 3 / sum(1 / share for share in shares)
    assert given["harmonic_score"] == pytest.approx(harmonic)
    assert len(found.generalisation.exact) == 3
    assert found.num_edits == 5


def test_unchanged_is_against_the_model_before():
    model, tokenizer = models.adapter(), tiny.byte_tokenizer(crosses_words=False)
    found = measured(model, tokenizer, EDITS, batch_size=4, base=None, memories=None)
    other = measured(model, tokenizer, EDITS, batch_size=4, base=models.bare(), memories=None)
    assert found == other

    def places(fact):
        return tokens_of(model, tokenizer, fact.prompt, fact.answer)[1]

    now = [[places(fact) for fact in edit.neighbours] for edit in EDITS]
    with model.disabled():
        was = [[places(fact) for fact in edit.neighbours] for edit in EDITS]
        quiet = measured(model, tokenizer, EDITS, batch_size=4, base=models.bare(), memories=None)
    wanted = [
        fmean(float(a == b) for a, b in zip(x, y, strict=True))
        for x, y in zip(now, was, strict=True)
    ]
    assert found.specificity.unchanged == wanted
    assert min(wanted) < 1.0
    assert set(quiet.specificity.unchanged) == {1.0}


def test_exact_efficacy_is_exact_recall():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    model = models.bare().train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    pairs = [fact_tokens(tokenizer, fact) for fact in tiny.FACTS[:3]]
    for _ in range(25):
        loss = 0.0
        for prompt, answer in pairs:
            labels = torch.tensor([[-100] * len(prompt) + answer])
            loss = loss + model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found = measured(model, tokenizer, EDITS, batch_size=4, base=models.bare(), memories=None)
    said = recall(model=model, tokenizer=tokenizer, facts=[e.fact for e in EDITS], batch_size=4)
    assert sum(found.efficacy.exact) == said.num_recalled == 3


def test_each_edit_reads_its_own_memory():
    tokenizer, library = tiny.byte_tokenizer(crosses_words=False), models.two_memories()
    names = ["anna", "bob", "bob", "anna", None]
    found = measured(library, tokenizer, EDITS, batch_size=50, base=None, memories=names)
    for number, name in enumerate(names):
        library.activate(name)
        alone = measured(
            library, tokenizer, [EDITS[number]], batch_size=1, base=None, memories=None
        )
        assert found.efficacy.margins[number] == pytest.approx(alone.efficacy.margins[0], abs=1e-5)


def test_what_edits_lack_is_not_measured():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    edits = [
        Edit(prompt="It", target_new="rained", target_true=None, paraphrases=[], neighbours=[])
    ]
    found = measured(models.bare(), tokenizer, edits, batch_size=1, base=None, memories=None)
    assert found.generalisation is None
    assert found.specificity is None
    assert found.harmonic_score is None
    assert sorted(values(found)) == ["efficacy_exact", "efficacy_tokens"]


def test_real_edits(data_folder):
    model, tokenizer = tiny.stories(data_folder)
    edits = read_edits(data_folder / "facts" / "counterfact-1k.json", COUNTERFACT, 40)
    found = measured(
        model, tokenizer, edits, batch_size=32, base=tiny.stories(data_folder)[0], memories=None
    )
    given = values(found)
    # It knows none of this: it takes either answer for likely as often.
    assert 0.2 < given["efficacy_score"] < 0.8
    assert given["efficacy_exact"] == 0.0
    assert given["specificity_unchanged"] == 1.0
    wanted = plain(model, tokenizer, edits[:5])
    few = values(
        measured(
            model,
            tokenizer,
            edits[:5],
            batch_size=32,
            base=tiny.stories(data_folder)[0],
            memories=None,
        )
    )
    assert {name: few[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_what_cannot_be_asked_is_refused():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    with pytest.raises(ValueError, match="editing: there must be at least one edit, got edits=0;"):
        measured(models.bare(), tokenizer, [], batch_size=1, base=None, memories=None)
    message = "editing: a model without a memory .* got model='LlamaForCausalLM', base=None;"
    with pytest.raises(ValueError, match=message):
        measured(models.bare(), tokenizer, EDITS, batch_size=1, base=None, memories=None)
    with pytest.raises(ValueError, match="editing: memories must .* memories=1, items=5;"):
        measured(
            models.two_memories(), tokenizer, EDITS, batch_size=1, base=None, memories=["anna"]
        )
