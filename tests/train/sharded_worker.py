"""What each process of `test_fully_sharded` runs: `python -m tests.train.sharded_worker FOLDER`.

Every model is trained in every way; what each process saw goes into `WAY/MODEL/rank-N`, and the
model is saved there by all processes together.
"""

import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from memtx import save
from memtx.train import (
    DataParallel,
    FullyShardedDataParallel,
    LayersAsUnits,
    ModulesAsUnits,
    Objective,
    launched,
)
from tests.train import sharded_models as models
from tests.train import tiny
from tests.train.broken import Broken

# peft asks transformers by a name that transformers has since changed.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)


def sharded(changes: dict[str, Any]) -> FullyShardedDataParallel:
    plain = {
        "device": torch.device("cpu"),
        "units": LayersAsUnits(),
        "param_dtype": None,
        "reduce_dtype": None,
        "reshard_after_forward": True,
    }
    return FullyShardedDataParallel(**(plain | changes))


Way = Callable[[], Any]
# Every model in these ways, and some in the others.
EVERY: dict[str, Way] = {
    "ddp": lambda: DataParallel(device=torch.device("cpu")),
    "fsdp": lambda: sharded({}),
}
SOME: dict[str, Way] = {
    "kept": lambda: sharded({"reshard_after_forward": False}),
    "root": lambda: sharded({"units": ModulesAsUnits(modules=[])}),
    "bf16": lambda: sharded({"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}),
}
SOME_MODELS = ("routed shared bank", "adapter")
JOBS = [(way, name) for way in EVERY for name in models.MODELS] + [
    (way, name) for way in SOME for name in SOME_MODELS
]


def run(way: str, name: str, *, folder: Path, accumulation: int) -> None:
    """Train, and leave records, first gradients, the trained model, and its artifact."""
    parallelism = (EVERY | SOME)[way]()
    trainer, noting = models.trainer(name, parallelism=parallelism, accumulation=accumulation)
    records = trainer.run()
    rank, model = parallelism.rank, trainer.objective.model
    folder.mkdir(parents=True, exist_ok=True)
    found = {"records": records, "kind": type(parallelism).__name__, "parts": parts_of(model)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    save_file(noting.noted, folder / f"gradients-{rank}.safetensors")
    trained = {key: models.whole(each).clone() for key, each in model.named_parameters()}
    save_file(trained, folder / f"trained-{rank}.safetensors")
    if parallelism.rank == 0 or way != "ddp":
        save(model, folder / "saved")


def parts_of(model: nn.Module) -> dict[str, list[int]]:
    """How many numbers of each sharded parameter lie here, of how many."""
    return {
        name: [each.to_local().numel(), each.numel()]
        for name, each in model.named_parameters()
        if isinstance(each, DTensor)
    }


def from_nowhere(folder: Path) -> None:
    """A model that only the first process has; and a float32 memory on a frozen bfloat16 base."""
    with torch.device("cpu" if dist.get_rank() == 0 else "meta"):
        model = models.shared(models.dense_read)
    first = {key: each.detach().clone() for key, each in model.named_parameters()}
    sharded({}).wrap(Objective(model=model, terms=[tiny.facts_term()]))
    held = {key: models.whole(each) for key, each in model.named_parameters()}
    narrow = tiny.adapter(model=tiny.base(seed=0).to(torch.bfloat16))
    trainer = replace(tiny.trainer(model=narrow, steps=2), parallelism=sharded({}))
    found = {
        "same": dist.get_rank() > 0 or tiny.same(held, first),
        "tied": model.head.embedding is model.embedding,
        "losses": [record["loss"] for record in trainer.run()],
        "dtypes": sorted({str(each.dtype) for each in narrow.parameters()}),
    }
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")


def broken(folder: Path) -> None:
    """A sum is not finite in the second process alone, with the step after it under way."""
    found: dict[str, Any] = {}
    for way, make in EVERY.items():
        left = []
        for steps, step in ((4, 2), (1, -1)):
            model = tiny.adapter(model=tiny.base(seed=0))
            term = Broken(value=math.nan, step=step if dist.get_rank() == 1 else -1)
            trainer = replace(
                tiny.trainer(model=model, steps=steps),
                objective=Objective(model=model, terms=[term]),
                parallelism=make(),
            )
            try:
                trainer.run()
            except FloatingPointError as error:
                found[way] = {"message": str(error), "calls": term.calls}
            left.append({key: models.whole(p) for key, p in model.named_memory_parameters()})
        found[way]["same"] = tiny.same(*left)
    (folder / f"broken-{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")


def refused(folder: Path) -> None:
    """What is refused, and how often a model may be sharded."""
    model = models.shared(models.dense_read)
    objective = Objective(model=model, terms=[tiny.facts_term()])
    parallelism = sharded({})
    again = parallelism.wrap(parallelism.wrap(objective)) is objective
    found: dict[str, Any] = {"again": again}
    mixed = models.adapter()
    mixed.banks.to(torch.bfloat16)
    for case, module in {
        "twice": Objective(model=model, terms=[tiny.facts_term()]),
        "dtypes": Objective(model=mixed, terms=[tiny.facts_term()]),
    }.items():
        try:
            parallelism.wrap(module)
        except ValueError as error:
            found[case] = str(error)
    (folder / f"refused-{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")


def main(folder: Path) -> None:
    with launched():
        for way, name in JOBS:
            run(way, name, folder=folder / way / name, accumulation=1)
        for name in ("dense shared bank", "adapter"):
            run("fsdp", name, folder=folder / "accumulated" / name, accumulation=2)
        from_nowhere(folder)
        broken(folder)
        refused(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
