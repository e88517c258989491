"""Memory, LoRA and both on one base that was really trained, in full precision and in few bits."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from factories.memory_and_lora import (
    base_in_4_bits,
    base_in_8_bits,
    base_in_16_bits,
    lora_alone,
    memory_alone,
    memory_and_lora,
    with_lora,
)
from memtx import MemoryAdapter, load_adapter, save, verify
from memtx.data import Batches, TextRows
from memtx.train import (
    AdamW,
    Fresh,
    FullPrecision,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    SingleProcess,
    Trainer,
    WarmupCosine,
)
from memtx.train.groups import check_partition, group_table
from tests.train import tiny

# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")
IDS = torch.arange(1, 13).reshape(2, 6)
FACTORIES = {"memory": memory_alone, "lora": lora_alone, "both": memory_and_lora}
NAMES = {"memory": ["bank", "reading"], "lora": ["lora"], "both": ["bank", "reading", "lora"]}
each_factory = pytest.mark.parametrize("kind", FACTORIES)


def run(*, model, terms, streams, groups, steps):
    return Trainer(
        objective=Objective(model=model, terms=terms),
        streams=streams,
        groups=groups,
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=0, total_steps=steps, floor=1.0),
        precision=FullPrecision(),
        parallelism=SingleProcess(device=CPU),
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=[],
        checkpoints=[],
        loggers=[],
    ).run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama, trained on the stories until it knows something."""
    model = tiny.base(seed=0).train()
    rows = TextRows(
        documents=tiny.DOCUMENTS * 4, tokenizer=tiny.byte_tokenizer(crosses_words=False), length=24
    )
    term = NextTokenLoss(name="text", stream="text", weight=1.0, chunk=1024)
    batches = Batches(rows=rows, batch_size=4, seed=0, pad_token_id=0)
    whole = ParameterGroup(
        name="base", modules=[model], without=[], learning_rate=3e-3, weight_decay=0.0
    )
    records = run(model=model, terms=[term], streams={"text": batches}, groups=[whole], steps=60)
    assert records[-1]["text"] < 0.3 * records[0]["text"]
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def base_from(folder):
    return tiny.base(seed=1).from_pretrained(folder).eval()


def faster(groups):
    """At the rates of the real bases a model this small would learn nothing in these few steps."""
    return [replace(group, learning_rate=20 * group.learning_rate) for group in groups]


def taught(stack, *, steps):
    """Facts, held to the base on stories."""
    return run(
        model=stack.model,
        terms=[tiny.facts_term(), tiny.locality_term(weight=1.0)],
        streams={
            "facts": tiny.fact_batches(batch_size=5),
            "background": tiny.text_batches(batch_size=3),
        },
        groups=faster(stack.groups),
        steps=steps,
    )


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


@each_factory
def test_each_part_is_a_group_of_its_own(folder, kind):
    stack = FACTORIES[kind](base_from(folder))
    check_partition(model=stack.model, groups=stack.groups)
    assert [group.name for group in stack.groups] == NAMES[kind]
    table = group_table(stack.groups)
    assert [line.split()[0] for line in table.splitlines()[1:]] == NAMES[kind]
    for group in stack.groups:
        trainable = {id(p) for p in group.parameters()}
        named = {name for name, p in stack.model.named_parameters() if id(p) in trainable}
        assert all(("lora_" in name) == (group.name == "lora") for name in named)
        assert all(("banks" in name) == (group.name == "bank") for name in named)


@each_factory
def test_a_fresh_stack_is_the_base(folder, kind):
    assert torch.equal(logits(FACTORIES[kind](base_from(folder)).model), logits(base_from(folder)))


@each_factory
def test_each_learns_and_only_its_groups_move(folder, kind):
    stack = FACTORIES[kind](base_from(folder))
    before = {name: p.detach().clone() for name, p in stack.model.named_parameters()}
    records = taught(stack, steps=25)
    assert records[-1]["facts"] < 0.5 * records[0]["facts"]
    # At first the model is its own teacher; then what is trained is held to what is not.
    assert records[0]["locality"] == pytest.approx(0.0, abs=1e-6)
    assert max(record["locality"] for record in records) > 1e-3
    trained = {id(p) for group in stack.groups for p in group.parameters()}
    for name, parameter in stack.model.named_parameters():
        assert torch.equal(parameter, before[name]) != (id(parameter) in trained), name


def test_the_teacher_of_both_is_the_bare_base(folder):
    """Not the base with the LoRA that is trained beside the memory."""
    stack = memory_and_lora(base_from(folder))
    taught(stack, steps=10)
    term = tiny.locality_term(weight=1.0)
    batch = tiny.text_batches(batch_size=3)[0]
    with torch.no_grad():
        found = term.totals(stack.model.eval(), batch)
        real = batch["attention_mask"].bool()
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        student, teacher = (m(**given).logits[real] for m in (stack.model, base_from(folder)))
        wanted = torch.nn.functional.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum"
        )
    assert wanted > 1e-2
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-4)
    # What is trained is trainable again.
    check_partition(model=stack.model, groups=stack.groups)


def test_a_frozen_lora_is_part_of_the_base(folder):
    """Memory alone on a base with a LoRA: it stays as it is, and belongs to the teacher."""
    base = with_lora(base_from(folder))
    for name, parameter in base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wanted = logits(base)
    stack = memory_alone(base)
    check_partition(model=stack.model, groups=stack.groups)
    assert [group.name for group in stack.groups] == ["bank", "reading"]
    records = taught(stack, steps=10)
    assert records[0]["locality"] == pytest.approx(0.0, abs=1e-6)
    assert not any(p.requires_grad for p in base.parameters())
    with stack.model.disabled():
        assert torch.equal(logits(stack.model), wanted)


def test_both_are_saved_together_and_come_back(folder, tmp_path):
    stack = memory_and_lora(base_from(folder))
    taught(stack, steps=5)
    wanted = logits(stack.model)
    stack.model.save_pretrained(tmp_path / "both", training={"steps": 5})
    assert verify(tmp_path / "both")["sound"]
    again = MemoryAdapter.from_pretrained(tmp_path / "both", base=base_from(folder))
    assert torch.equal(logits(again), wanted)
    # Each alone: the memory off leaves the LoRA, and peft loads the LoRA without memtx.
    alone = PeftModel.from_pretrained(base_from(folder), tmp_path / "both" / "lora")
    with again.disabled():
        assert torch.equal(logits(again), logits(alone))
    taught(replace(stack, model=again, groups=regrouped(again)), steps=2)


def regrouped(adapter):
    """The groups of an adapter that was loaded, as the factory makes them."""
    parts = {"bank": ([adapter.banks], []), "lora": ([adapter.base], [])}
    parts["reading"] = ([adapter.insertions], [adapter.banks])
    return [
        ParameterGroup(
            name=name, modules=modules, without=without, learning_rate=1e-4, weight_decay=0.0
        )
        for name, (modules, without) in parts.items()
    ]


@pytest.mark.parametrize("load", [base_in_16_bits, base_in_8_bits, base_in_4_bits])
@pytest.mark.parametrize("kind", ["memory", "both"])
def test_a_base_in_few_bits_learns_speaks_and_is_saved(folder, tmp_path, load, kind):
    stack = FACTORIES[kind](load(str(folder), device=CPU))
    records = taught(stack, steps=25)
    assert records[-1]["facts"] < 0.6 * records[0]["facts"]
    model = stack.model.eval()
    spoken = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False
    )
    assert spoken.shape == (2, 10)
    wanted = logits(model)
    save(model, tmp_path / "memory")
    again = load_adapter(tmp_path / "memory", load(str(folder), device=CPU))
    assert torch.equal(logits(again), wanted)
    # The memory knows its base in any number of bits.
    load_adapter(tmp_path / "memory", base_from(folder))
