"""The training loop in one process."""

import json
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from memtx.adapters import MemoryAdapter
from memtx.evaluate import recall
from memtx.spec import load_adapter
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    Checkpoints,
    JsonLines,
    Objective,
    ParameterGroup,
    Trainer,
    WarmupCosine,
)
from tests import routing
from tests.train import tiny


@pytest.fixture
def model() -> MemoryAdapter:
    return fresh()


def fresh() -> MemoryAdapter:
    """The same adapter every time."""
    return tiny.adapter(model=tiny.base(seed=0))


def protecting(*, model: MemoryAdapter, steps: int, batch_size: int, accumulation: int) -> Trainer:
    """Facts and background together, as all teaching should be."""
    return replace(
        tiny.trainer(model=model, steps=steps),
        objective=Objective(model=model, terms=[tiny.facts_term(), tiny.locality_term(weight=0.5)]),
        streams={
            "facts": tiny.fact_batches(batch_size=batch_size),
            "background": tiny.text_batches(batch_size=batch_size),
        },
        accumulation=accumulation,
    )


class Probe:
    """Counts its calls and remembers the memory of each."""

    def __init__(self, *, model: MemoryAdapter, every: int) -> None:
        self.model = model
        self.every = every
        self.seen: list[dict[str, torch.Tensor]] = []

    def measure(self) -> dict[str, float]:
        self.seen.append(tiny.memory_of(self.model))
        return {"probe": float(len(self.seen))}


def test_teaching_five_facts_leaves_the_base_as_it_was(model):
    before = tiny.base_of(model)
    trainer = replace(
        tiny.trainer(model=model, steps=60), streams={"facts": tiny.fact_batches(batch_size=5)}
    )
    records = trainer.run()
    assert [record["step"] for record in records] == list(range(1, 61))
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    assert tiny.same(tiny.base_of(model), before)
    assert all(parameter.grad is None for parameter in model.base.parameters())
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    known = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    assert known.num_recalled == 5
    with model.disabled():
        off = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    assert off.num_recalled == 0


def test_the_locality_term_protects():
    texts, harm = tiny.text_batches(batch_size=3)[0], {}
    for name, weight in (("without", 0.0), ("with", 1.0)):
        model = fresh()
        trainer = protecting(model=model, steps=40, batch_size=3, accumulation=1)
        terms = [tiny.facts_term(), tiny.locality_term(weight=weight)]
        records = replace(trainer, objective=Objective(model=model, terms=terms)).run()
        assert records[-1]["facts"] < 0.5 * records[0]["facts"]
        with torch.no_grad():
            harm[name] = terms[1].totals(model, texts).item()
    assert harm["with"] < 0.3 * harm["without"]


def test_the_first_loss_is_that_of_all_labels_of_the_step(model):
    # Rows of unequal answers: a mean of batch means would be another number.
    batch = tiny.fact_batches(batch_size=4)[0]
    wanted = model(**batch).loss.item()
    parts = [model(**tiny.fact_batches(batch_size=1)[row]).loss.item() for row in range(4)]
    assert abs(sum(parts) / 4 - wanted) > 1e-3
    trainer = tiny.trainer(model=model, steps=1)
    trainer = replace(trainer, streams={"facts": tiny.fact_batches(batch_size=1)}, accumulation=4)
    assert trainer.run()[0]["facts"] == pytest.approx(wanted, rel=1e-6)


def test_accumulation_equals_a_larger_batch():
    cut, whole = fresh(), fresh()
    one = protecting(model=cut, steps=4, batch_size=2, accumulation=2).run()
    other = protecting(model=whole, steps=4, batch_size=4, accumulation=1).run()
    for key in ("loss", "facts", "locality", "gradient_norm"):
        wanted = [record[key] for record in other]
        assert [record[key] for record in one] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert other[-1]["locality"] > 0
    memory = tiny.memory_of(whole)
    for name, tensor in tiny.memory_of(cut).items():
        torch.testing.assert_close(tensor, memory[name], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_weighted_sum_and_the_norm_that_of_its_gradient(model):
    tiny.perturb(model)
    trainer = protecting(model=model, steps=1, batch_size=3, accumulation=1)
    batches = {name: stream[0] for name, stream in trainer.streams.items()}
    means = trainer.objective(batches) / trainer.objective.counts(batches)
    loss = means[0] + 0.5 * means[1]
    gradients = torch.autograd.grad(loss, list(model.memory_parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    (record,) = trainer.run()
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["locality"] == pytest.approx(means[1].item(), rel=1e-5)
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_schedule_scales_the_rate_of_every_group(model):
    # In its first step Adam moves what has a gradient by the learning rate; a fresh memory has
    # one in `o_proj` alone, and weight decay shrinks the rest.
    near, far = model.insertions
    before = tiny.memory_of(model)
    rates = {"near": (1e-2, 0.0), "far": (1e-4, 0.5), "bank": (1e-3, 0.5)}
    parts = {"near": [near], "far": [far], "bank": [model.banks]}
    groups = [
        ParameterGroup(
            name=name,
            modules=modules,
            without=[] if name == "bank" else [model.banks],
            learning_rate=rates[name][0],
            weight_decay=rates[name][1],
        )
        for name, modules in parts.items()
    ]
    schedule = WarmupCosine(warmup_steps=4, total_steps=8, floor=0.0)
    seen = Probe(model=model, every=1)
    trainer = tiny.trainer(model=model, steps=8)
    records = replace(trainer, groups=groups, schedule=schedule, evaluations=[seen]).run()
    factors = [record["learning_rate_factor"] for record in records]
    assert factors == [schedule.factor(step) for step in range(1, 9)]
    after = seen.seen[0]
    for number, rate in ((0, 1e-2), (1, 1e-4)):
        moved = after[f"insertions.{number}.sublayers.0.sublayer.o_proj.weight"].abs()
        assert moved.max().item() == pytest.approx(0.25 * rate, rel=1e-3)
    torch.testing.assert_close(
        after["banks.0.tokens"], before["banks.0.tokens"] * (1 - 0.25 * 1e-3 * 0.5)
    )
    query = "insertions.0.sublayers.0.sublayer.q_proj.weight"
    assert torch.equal(after[query], before[query])
    assert tiny.same(seen.seen[-1], tiny.memory_of(model))


@pytest.mark.parametrize("clip_norm", [1e-3, math.inf])
def test_the_gradient_is_clipped_and_its_norm_logged_as_it_was(model, clip_norm):
    # With a large eps Adam's first step is the gradient times rate / eps.
    before = tiny.memory_of(model)
    trainer = replace(
        tiny.trainer(model=model, steps=1),
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e4),
        clip_norm=clip_norm,
    )
    (record,) = trainer.run()
    assert record["gradient_norm"] > 0.1
    after = tiny.memory_of(model)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after]).norm().item()
    wanted = min(record["gradient_norm"], clip_norm) * 1e-2 / 1e4
    assert moved == pytest.approx(wanted, rel=1e-2)


def test_bfloat16_autocast_keeps_the_memory_in_float32(model):
    plain = protecting(model=fresh(), steps=1, batch_size=3, accumulation=1).run()
    trainer = protecting(model=model, steps=30, batch_size=3, accumulation=1)
    records = replace(trainer, precision=BFloat16Autocast()).run()
    assert records[0]["facts"] == pytest.approx(plain[0]["facts"], rel=2e-2)
    assert records[0]["facts"] != plain[0]["facts"]
    assert records[-1]["facts"] < 0.6 * records[0]["facts"]
    assert {p.dtype for p in model.memory_parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.memory_parameters())


def test_a_float32_memory_trains_on_a_bfloat16_base():
    model = tiny.adapter(model=tiny.base(seed=0).bfloat16())
    before = tiny.base_of(model)
    records = protecting(model=model, steps=30, batch_size=3, accumulation=1).run()
    assert records[-1]["facts"] < 0.6 * records[0]["facts"]
    assert {p.dtype for p in model.memory_parameters()} == {torch.float32}
    assert tiny.same(tiny.base_of(model), before)


# peft asks transformers under a name that transformers has given up.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_memory_and_lora_are_trained_together():
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = tiny.adapter(model=get_peft_model(tiny.base(seed=0), config))
    before, trainer = tiny.base_of(model), tiny.trainer(model=model, steps=3)
    lora = ParameterGroup(
        name="lora", modules=[model.base], without=[], learning_rate=1e-2, weight_decay=0.0
    )
    memory = ParameterGroup(
        name="memory",
        modules=[model.banks, model.insertions],
        without=[],
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    with pytest.raises(ValueError, match="left out=.*lora_A"):
        trainer.run()
    records = replace(trainer, groups=[memory, lora]).run()
    assert records[-1]["loss"] < records[0]["loss"]
    moved = {name for name, tensor in tiny.base_of(model).items() if (tensor != before[name]).any()}
    assert moved == {name for name in before if "lora_" in name}


def test_metrics_have_a_line_for_each_step(model, tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = protecting(model=model, steps=3, batch_size=2, accumulation=1)
    records = replace(trainer, loggers=[JsonLines(path=path)]).run()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == records
    assert [line["step"] for line in lines] == [1, 2, 3]
    wanted = {"step", "loss", "facts", "locality", "gradient_norm", "learning_rate_factor"}
    wanted |= {"learning_rate/memory", "tokens_per_second", "step_seconds", "data_seconds"}
    assert all(set(line) == wanted for line in lines)
    for line in lines:
        assert line["tokens_per_second"] > 0
        assert 0 < line["data_seconds"] < line["step_seconds"]
        assert line["learning_rate/memory"] == 1e-2 * line["learning_rate_factor"]


@pytest.mark.parametrize("strategy", routing.STRATEGIES.values(), ids=routing.STRATEGIES)
def test_router_losses_are_added_and_logged_one_by_one(strategy):
    model = tiny.routed_adapter(model=tiny.base(seed=0), strategy=strategy)
    trainer = protecting(model=model, steps=4, batch_size=3, accumulation=2)
    names = ["LoadBalanceLoss(0.5)", "ChapterVarianceLoss(0.3)", "RouterZLoss(0.25)"]
    parts = []
    for number in range(2):
        means = trainer.objective.train()(
            {name: stream[number] for name, stream in trainer.streams.items()}
        )
        parts.append(means[1:4].tolist())
    records = trainer.run()
    own = {f"facts/{name}" for name in names}
    assert own < set(records[0])
    # Of the first step: the mean over its batches, each with the statistics of its own rows.
    for at, name in enumerate(names):
        wanted = (parts[0][at] + parts[1][at]) / 2
        assert records[0][f"facts/{name}"] == pytest.approx(wanted, rel=1e-5)
    for record in records:
        balance, variance, z = (record[f"facts/{name}"] for name in names)
        loss = record["facts"] + 0.5 * record["locality"]
        loss += 0.5 * balance + 0.3 * variance + 0.25 * z
        assert record["loss"] == pytest.approx(loss, rel=1e-6)
    assert records[-1]["loss"] < records[0]["loss"]


def test_evaluations_come_every_so_many_steps_and_are_logged(model, tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = tiny.trainer(model=model, steps=5)
    probe = Probe(model=model, every=2)
    replace(trainer, evaluations=[probe], loggers=[JsonLines(path=path)]).run()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("probe") for line in lines] == [None, 1.0, None, 2.0, None]


@pytest.mark.parametrize(("every", "saved"), [(2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_checkpoints_come_every_so_many_steps_and_at_the_end(model, tmp_path, every, saved):
    probe = Probe(model=model, every=1)
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=every, keep=9)
    trainer = tiny.trainer(model=model, steps=5)
    replace(trainer, evaluations=[probe], checkpoints=[checkpoints]).run()
    folders = sorted(tmp_path.iterdir())
    assert [folder.name for folder in folders] == [f"step-{step:08d}" for step in saved]
    for step, folder in zip(saved, folders, strict=True):
        loaded = load_adapter(folder, base=tiny.base(seed=0))
        assert tiny.same(tiny.memory_of(loaded), probe.seen[step - 1])
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_two_runs_are_equal():
    runs = []
    for _ in range(2):
        records = protecting(model=fresh(), steps=3, batch_size=2, accumulation=2).run()
        runs.append([without_times(record) for record in records])
    assert runs[0] == runs[1]


def without_times(record: dict[str, float]) -> dict[str, float]:
    times = {"tokens_per_second", "step_seconds", "data_seconds"}
    return {key: value for key, value in record.items() if key not in times}


def test_a_run_goes_on_where_its_streams_stand():
    whole = tiny.trainer(model=fresh(), steps=4)
    wanted = [record["facts"] for record in replace(whole, groups=still(whole)).run()]
    first = tiny.trainer(model=fresh(), steps=2)
    first = replace(first, groups=still(first))
    found = [record["facts"] for record in first.run()]
    state = json.loads(json.dumps({name: s.state_dict() for name, s in first.streams.items()}))
    second = tiny.trainer(model=fresh(), steps=2)
    for name, stream in second.streams.items():
        stream.load_state_dict(state[name])
    found += [record["facts"] for record in replace(second, groups=still(second)).run()]
    assert found == wanted
    assert len(set(wanted)) > 1


def still(trainer: Trainer) -> list[ParameterGroup]:
    """The groups at a rate of next to nothing, so that losses tell batches alone."""
    return [replace(group, learning_rate=1e-30) for group in trainer.groups]
