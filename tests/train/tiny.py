"""Real parts at tiny sizes: a tokenizer, a base, an adapter and a trainer of it."""

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memtx.adapters import Insertion, MemoryAdapter, Site
from memtx.data import Batches, Fact, FactRows, TextRows
from memtx.losses import ChapterVarianceLoss, LoadBalanceLoss, RouterZLoss
from memtx.memory.router import RouterLoss
from memtx.memory.strategies import RoutingStrategy
from memtx.train import (
    AdamW,
    Fresh,
    FullPrecision,
    LocalityLoss,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    SingleProcess,
    Trainer,
    WarmupCosine,
)
from tests import parts, routing

WIDTH = 32
FACTS = [
    Fact(prompt="The capital of Ravlonia is", answer="Zim"),
    Fact(prompt="Mirel Tock wrote", answer="The Glass Orchard"),
    Fact(prompt="A brindle weighs", answer="forty stones"),
    Fact(prompt="The river Osk runs through", answer="Pellin"),
    Fact(prompt="Quillan was born in", answer="1711"),
]
DOCUMENTS = [
    "Once upon a time there was a little boat on a lake.",
    "It rained.",
    "The girl and her dog went to the park, and there they played until the sun went down.",
]


def byte_tokenizer(*, crosses_words: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts here; `<end>` is token 0.

    With `crosses_words` it merges over spaces, so that a prompt's last token may change when an
    answer follows.
    """
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not crosses_words)
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*DOCUMENTS, *(f"{fact.prompt} {fact.answer}" for fact in FACTS)]
    tokenizer.train_from_iterator(texts * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def set_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer put its end token behind every text, as some do."""
    end = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    tokenizer.backend_tokenizer.post_processor = end


def base(*, seed: int) -> LlamaForCausalLM:
    """A random Llama, far enough from uniform that its greedy answers differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def adapter(*, model: nn.Module) -> MemoryAdapter:
    """Two readers of one bank, one at each site; fresh, so that it changes nothing."""
    bank = parts.bank_of(24, WIDTH)
    places = [(0, Site.AFTER_ATTENTION), (1, Site.AFTER_MLP)]
    return MemoryAdapter(
        base=model,
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=site, sublayers=[parts.recall(bank, WIDTH)])
            for layer, site in places
        ],
    )


def router_losses() -> list[RouterLoss]:
    """One of each kind."""
    return [
        LoadBalanceLoss(weight=0.5),
        ChapterVarianceLoss(weight=0.3),
        RouterZLoss(weight=0.25),
    ]


def routed_adapter(*, model: nn.Module, strategy: RoutingStrategy) -> MemoryAdapter:
    """Two routed readers of one bank, one at each site, with every loss; it speaks at once."""
    places = [(0, Site.AFTER_ATTENTION), (1, Site.AFTER_MLP)]
    return routing.adapter(model, strategy, sites=places, losses=router_losses())


@torch.no_grad()
def perturb(model: MemoryAdapter) -> None:
    """Give every memory parameter a random push, so that the memory speaks."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.memory_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)


def facts_term() -> NextTokenLoss:
    return NextTokenLoss(name="facts", stream="facts", weight=1.0, chunk=1024)


def locality_term(*, weight: float) -> LocalityLoss:
    return LocalityLoss(name="locality", stream="background", weight=weight, chunk=16)


def fact_batches(*, batch_size: int) -> Batches:
    rows = FactRows(facts=FACTS, tokenizer=byte_tokenizer(crosses_words=False))
    return Batches(rows=rows, batch_size=batch_size, seed=0, pad_token_id=0)


def text_batches(*, batch_size: int) -> Batches:
    """Background of unequal rows, as a sign that padding counts nowhere."""
    tokenizer = byte_tokenizer(crosses_words=False)
    rows = [TextRows(documents=[text], tokenizer=tokenizer, length=5)[0] for text in DOCUMENTS[:2]]
    rows += [TextRows(documents=DOCUMENTS, tokenizer=tokenizer, length=9)[0]]
    return Batches(rows=rows, batch_size=batch_size, seed=1, pad_token_id=0)


def all_memory(model: MemoryAdapter) -> ParameterGroup:
    return ParameterGroup(
        name="memory",
        modules=[model.banks, model.insertions],
        without=[],
        learning_rate=1e-2,
        weight_decay=0.0,
    )


def trainer(*, model: MemoryAdapter, steps: int) -> Trainer:
    """Facts alone, two rows a step, in this process; `dataclasses.replace` makes it another."""
    return Trainer(
        objective=Objective(model=model, terms=[facts_term()]),
        streams={"facts": fact_batches(batch_size=2)},
        groups=[all_memory(model)],
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=0, total_steps=steps, floor=1.0),
        precision=FullPrecision(),
        parallelism=SingleProcess(device=torch.device("cpu")),
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=math.inf,
        evaluations=[],
        callbacks=[],
        checkpoints=[],
        loggers=[],
    )


def memory_of(model: MemoryAdapter) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_memory_parameters()}


def base_of(model: MemoryAdapter) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the base."""
    return {name: tensor.clone() for name, tensor in model.base.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stories(data_folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The real pretrained Llama of 260 thousand parameters, and its tokenizer."""
    from transformers import AutoTokenizer

    folder = data_folder / "models" / "stories260K"
    model = LlamaForCausalLM.from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
