"""Loss and divergence from the model before, against whole logits of transformers."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from memtx.evaluate import Confidence, StridedWindows, forgetting, text_loss
from tests.evaluate import models
from tests.train import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

WINDOWS = StridedWindows(max_length=20, stride=20)
TOKENIZER = tiny.byte_tokenizer(crosses_words=False)


def measured(model, *, base, batch_size):
    return forgetting(
        model=model,
        tokenizer=TOKENIZER,
        documents=tiny.DOCUMENTS,
        windows=WINDOWS,
        batch_size=batch_size,
        base=base,
    )


@torch.no_grad()
def plain(model, base) -> dict[str, float]:
    """Of one window after another, with all logits made."""
    sums = {"base_loss": 0.0, "loss": 0.0, "kl": 0.0, "agreement": 0.0}
    count = 0
    for text in tiny.DOCUMENTS:
        for context, predicted in WINDOWS(TOKENIZER(text)["input_ids"]):
            ids = torch.tensor([[*context, *predicted]])
            now, was = model(input_ids=ids).logits[0, :-1], base(input_ids=ids).logits[0, :-1]
            sums["base_loss"] += cross_entropy(was, ids[0, 1:], reduction="sum").item()
            sums["loss"] += cross_entropy(now, ids[0, 1:], reduction="sum").item()
            sums["kl"] += kl_div(
                now.log_softmax(-1), was.log_softmax(-1), log_target=True, reduction="sum"
            ).item()
            sums["agreement"] += int((now.argmax(-1) == was.argmax(-1)).sum())
            count += len(predicted)
    return {name: value / count for name, value in sums.items()}


def values(found):
    return {name: getattr(found, name) for name in ("base_loss", "loss", "kl", "agreement")}


@pytest.mark.parametrize("kind", models.SWITCHED)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_switched_off_is_the_model_before(kind, batch_size):
    model, base = models.SWITCHED[kind](), models.bare()
    wanted = plain(model, base)
    found = measured(model, base=None, batch_size=batch_size)
    assert values(found) == pytest.approx(wanted, rel=1e-4)
    assert found.loss_rise == pytest.approx(wanted["loss"] - wanted["base_loss"], abs=1e-4)
    assert found.kl > 1e-3
    explicit = measured(model, base=base, batch_size=batch_size)
    assert values(explicit) == pytest.approx(wanted, rel=1e-4)


def test_full_fine_tuning_against_another_model():
    model, base = tiny.base(seed=1), tiny.base(seed=0)
    assert values(measured(model, base=base, batch_size=2)) == pytest.approx(
        plain(model, base), rel=1e-4
    )
    same = measured(model, base=tiny.base(seed=1), batch_size=2)
    assert (same.kl, same.loss_rise, same.agreement) == (0.0, 0.0, 1.0)


def test_whole_models():
    model, base = models.whole(), models.tensor_model()
    found = measured(model, base=base, batch_size=3)
    assert values(found) == pytest.approx(plain(model, base), rel=1e-4)


def test_a_lora_below_a_memory_is_switched_off_with_it():
    lora = models.lora()
    model = tiny.adapter(model=lora)
    tiny.perturb(model)
    for name, parameter in lora.named_parameters():
        parameter.requires_grad_("lora_" in name)
    found = measured(model, base=None, batch_size=3)
    assert values(found) == pytest.approx(plain(model, models.bare()), rel=1e-4)
    # One that is frozen is part of the base.
    lora.requires_grad_(False)
    frozen = measured(model, base=None, batch_size=3)
    assert values(frozen) == pytest.approx(plain(model, models.lora()), rel=1e-4)


def test_a_lora_alone_is_switched_off_though_it_is_frozen():
    # As `PeftModel.from_pretrained` gives it.
    model = models.lora().requires_grad_(False)
    found = measured(model, base=None, batch_size=3)
    assert values(found) == pytest.approx(plain(model, models.bare()), rel=1e-4)


def test_the_loss_is_that_of_text_loss(data_folder):
    base, tokenizer = tiny.stories(data_folder)
    text = (data_folder / "text" / "tinystories.txt").read_text()[:4000]
    model = tiny.stories(data_folder)[0]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.9)
    found = forgetting(
        model=model,
        tokenizer=tokenizer,
        documents=[text],
        windows=StridedWindows(max_length=256, stride=256),
        batch_size=4,
        base=base,
    )
    for each, loss in ((base, found.base_loss), (model, found.loss)):
        wanted = text_loss(
            model=each, tokenizer=tokenizer, documents=[text], max_length=256, batch_size=2
        )
        assert loss == pytest.approx(wanted.mean, rel=1e-5)
    metrics = found.metrics(Confidence(level=0.95, resamples=200, seed=0))
    interval = metrics["loss_rise"].interval
    assert interval.low <= found.loss_rise <= interval.high
    assert metrics["perplexity_rise"].value == pytest.approx(found.perplexity_rise)
    assert found.kl > 0.0


def test_what_cannot_be_compared_is_refused():
    model = models.adapter()
    message = "forgetting: base must be another model, .* got base='LlamaForCausalLM', model="
    with pytest.raises(ValueError, match=message):
        measured(model, base=model.base, batch_size=1)
    message = "forgetting: a model without a memory .* got model='MemoryTransformer', base=None;"
    with pytest.raises(ValueError, match=message):
        measured(models.whole(), base=None, batch_size=1)
    with pytest.raises(ValueError, match="forgetting: batch_size must .* got batch_size=0;"):
        measured(model, base=None, batch_size=0)
