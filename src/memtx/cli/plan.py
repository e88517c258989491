"""`memtx plan`: parameters, bytes and operations of a factory, before anything is allocated."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from memtx.cli.command import CommandError, Commands, add_command
from memtx.cli.find import check_arguments, find_factory, settings_of

COMMAND = "memtx plan"
# As `memtx.evaluate.plan` has them: written again, as other commands need not wait for it.
OPTIMIZERS = ("AdamW", "Adam", "SGD", "AdamW8bit")
EXAMPLES = [
    "memtx plan mixture_of_chapters:with_memory",
    "memtx plan from_scratch:routed_a_30m --batch 16 --length 1024 --json",
    "memtx plan tensor_memory:small --set vocab_size=32000",
    "memtx plan qwen_adapter:memory_for_1_5b --base Qwen/Qwen2.5-1.5B --base-dtype bfloat16",
    "memtx plan my_factories/qwen_adapter.py:memory_for_tiny --base runs/tiny/base",
]


def add(commands: Commands) -> None:
    """Adds `memtx plan` to the command line."""
    command = add_command(
        commands,
        name="plan",
        summary="say what a model will take, before anything is allocated",
        examples=EXAMPLES,
    )
    command.add_argument(
        "factory",
        metavar="FACTORY",
        help="MODULE:FUNCTION that makes a model; MODULE is a name of `memtx factories list`, a "
        "module, or a .py file",
    )
    command.add_argument(
        "--base",
        metavar="MODEL",
        help="for a factory that takes a base: a folder or a name on the hub; only its "
        "configuration is read",
    )
    command.add_argument(
        "--base-dtype",
        metavar="DTYPE",
        help="of the base's weights, such as bfloat16; without it, as the configuration says",
    )
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of the factory; may be given several times",
    )
    command.add_argument("--batch", type=int, default=8, help="rows of a step (default 8)")
    command.add_argument("--length", type=int, default=1024, help="tokens of a row (default 1024)")
    command.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="AdamW",
        help="whose state is counted (default AdamW; SGD with momentum)",
    )
    command.add_argument("--json", action="store_true", help="write the plan as JSON")
    command.set_defaults(call=planned)


def planned(asked: argparse.Namespace) -> int:
    """Makes the model on the meta device and prints its plan; returns 0."""
    for name in ("batch", "length"):
        if getattr(asked, name) < 1:
            raise CommandError(
                f"{COMMAND}: --{name} must be at least 1, got --{name}={getattr(asked, name)}; "
                f"pass a positive size."
            )
    factory = find_factory(asked.factory, command=COMMAND)
    given = settings_of(asked.set, command=COMMAND)
    if asked.base is not None:
        given["base"] = asked.base
    elif asked.base_dtype is not None:
        raise CommandError(
            f"{COMMAND}: --base-dtype needs a base, got --base-dtype={asked.base_dtype}; "
            f"name it by --base."
        )
    check_arguments(factory, given=given, name=asked.factory, command=COMMAND)
    if asked.base is not None:
        given["base"] = _base(asked.base, dtype=asked.base_dtype)
    model = _made(factory, given=given, name=asked.factory)
    from memtx.evaluate.plan import plan

    try:
        report = plan(
            model=model, batch=asked.batch, length=asked.length, optimizer=asked.optimizer
        )
    except ValueError as error:
        raise CommandError(f"{COMMAND}: {error}") from error
    report = {"factory": asked.factory} | report
    print(json.dumps(report, indent=2) if asked.json else written(report))
    return 0


def _base(name: str, *, dtype: str | None) -> Any:
    """Make a base on the meta device, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = getattr(torch, dtype, None) if dtype is not None else None
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise CommandError(
            f"{COMMAND}: --base-dtype must be a floating dtype of torch, got --base-dtype={dtype}; "
            f"for example bfloat16."
        )
    try:
        config = AutoConfig.from_pretrained(name)
        kind = kind or getattr(config, "dtype", None) or torch.float32
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=kind)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CommandError(
            f"{COMMAND}: --base must be a folder with a config.json, or a model on the hub that "
            f"can be reached, got --base={name} ({reason}); save the configuration there, or name "
            f"another."
        ) from error


def _made(factory: Callable[..., Any], *, given: Mapping[str, Any], name: str) -> Any:
    """Give the model that a factory makes, out of what it may put around it."""
    import torch

    try:
        with torch.device("meta"):
            made = factory(**given)
    # A factory may raise anything; its own words say what it lacks.
    except Exception as error:
        raise CommandError(
            f"{COMMAND}: {name} must make its model on the meta device, got "
            f"{type(error).__name__}: {error}"
        ) from error
    for found in (made, getattr(made, "model", None), getattr(made, "adapter", None)):
        if isinstance(found, torch.nn.Module):
            return found
    raise CommandError(
        f"{COMMAND}: FACTORY must give a model, or something with one as `model` or `adapter`, got "
        f"{type(made).__name__}; name another function."
    )


def written(report: dict[str, Any]) -> str:
    """Write a plan to be read at 80 columns."""
    lines = [f"{report['factory']}: {report['model']}", ""]
    lines.append(f"{'parameters':<18}{'tensors':>9}{'trainable':>18}{'frozen':>18}")
    for name, group in report["groups"].items():
        numbers = f"{group['tensors']:>9,}{group['trainable']:>18,}{group['frozen']:>18,}"
        lines.append(f"{name:<18}{numbers}")
    lines.append(f"{'together':<27}{report['trainable']:>18,}{report['frozen']:>18,}")
    sizes, step = report["bytes"], report["batch"] * report["length"]
    lines += [
        "",
        f"{'weights':<18}{_bytes(sizes['weights'])}",
        f"{'gradients':<18}{_bytes(sizes['gradients'])}",
        f"{report['optimizer'] + ' state':<18}{_bytes(sizes['optimizer'])}",
        f"{'together':<18}{_bytes(sizes['together'])}, and activations on top",
    ]
    if report["memory_tokens"]:
        tokens = f"{report['memory_tokens']:,} memory tokens"
        lines.append(f"{'of it the bank':<18}{_bytes(sizes['bank'])}, {tokens}")
    flops = report["flops_per_token"]
    shape = f"{report['batch']:,} x {report['length']:,} tokens"
    lines += ["", f"{'FLOPs':<18}{'per token':>12}{'per step':>12}  of {shape}"]
    for name in ("forward", "backward", "training"):
        numbers = f"{_scaled(flops[name]):>12}{_scaled(flops[name] * step):>12}"
        lines.append(f"{name:<18}{numbers}")
    return "\n".join(lines)


def _bytes(count: int) -> str:
    """Write a size in memory."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 1024**power:>9.1f} {units[power]}"


def _scaled(count: float) -> str:
    """Write a count of operations in four digits."""
    for letter in ("", "K", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.4g} {letter}".rstrip()
        count /= 1000
    return f"{count:.4g} E"
