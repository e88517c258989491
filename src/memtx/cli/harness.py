"""Tasks of lm-evaluation-harness for `memtx evaluate`, where it is installed."""

import importlib.util
import math
import statistics
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtx.cli.command import CommandError, flat

if TYPE_CHECKING:
    from memtx.evaluate import Confidence, EvaluationResult, Metric

COMMAND = "memtx evaluate"


def require_harness(tasks: list[str]) -> None:
    """Refuse tasks where the harness is not installed.

    Args:
        tasks: what was asked for.

    Raises:
        CommandError: if it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise CommandError(
            f"{COMMAND}: --tasks needs lm-evaluation-harness, got --tasks={','.join(tasks)} and no "
            f"package lm_eval; run pip install 'memtx[evaluate]'."
        )


def manager_of(tasks: list[str], *, include: Path | None) -> Any:
    """Give the harness's own manager of tasks, which knows all of those.

    Args:
        tasks: their names.
        include: a folder with tasks of one's own; None, none.

    Raises:
        CommandError: if it does not know one.
    """
    from lm_eval.tasks import TaskManager

    with redirect_stdout(sys.stderr):
        manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise CommandError(
            f"{COMMAND}: --tasks must be tasks of lm_eval, or of --include-path, got "
            f"{', '.join(unknown)}; see `lm_eval ls tasks`."
        )
    return manager


def harness_results(
    model: Any,
    tokenizer: Any,
    *,
    tasks: list[str],
    manager: Any,
    batch_size: int,
    fewshot: int | None,
    limit: int | None,
    confidence: "Confidence",
) -> "list[EvaluationResult]":
    """Let the harness ask its tasks of a model that is loaded.

    Args:
        model: an adapter, or a whole model of memtx.
        tokenizer: its tokenizer.
        tasks: names of tasks, or of groups of them.
        manager: as `manager_of` gives it.
        batch_size: requests per forward.
        fewshot: examples before each question; None, as each task has it.
        limit: items of each task; None, all.
        confidence: the level of intervals, and how often the harness draws for them.

    Raises:
        CommandError: if a task fails, as one whose data cannot be had.
    """
    from lm_eval import simple_evaluate

    from memtx.evaluate import EvaluationResult
    from memtx.evaluate.harness import MemtxLM

    try:
        with redirect_stdout(sys.stderr):
            found: Any = simple_evaluate(
                model=MemtxLM(model=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=fewshot,
                limit=limit,
                bootstrap_iters=confidence.resamples,
                log_samples=False,
            )
    # Tasks come from a third party, with code and downloads of their own.
    except Exception as error:
        raise CommandError(
            f"{COMMAND}: lm_eval must be able to ask {', '.join(tasks)}, got "
            f"{type(error).__name__}: {flat(error)[:500]}; see whether its data can be had."
        ) from error
    return [
        EvaluationResult(
            name=f"{name} (lm_eval)",
            metrics=_metrics(values, count=_count(found, name), confidence=confidence),
            seed=None,
            details={"task": name, "version": str(found["versions"].get(name, ""))},
        )
        for name, values in found["results"].items()
    ]


def _count(found: Any, name: str) -> int:
    """Give the items of a task, or of all tasks of a group."""
    counts = found["n-samples"]
    if name in counts:
        return int(counts[name]["effective"])
    return sum(_count(found, each) for each in found.get("group_subtasks", {}).get(name, []))


def _metrics(
    values: dict[str, Any], *, count: int, confidence: "Confidence"
) -> "dict[str, Metric]":
    """Give the harness's numbers, with intervals from its standard errors."""
    from memtx.evaluate import Interval, Metric

    reach = statistics.NormalDist().inv_cdf(0.5 + confidence.level / 2)
    metrics = {}
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        error: Any = values.get(f"{metric}_stderr,{kept}")
        interval = None
        if _is_number(error):
            low, high = value - reach * error, value + reach * error
            interval = Interval(low=low, high=high, method="normal")
        name = metric if kept == "none" else f"{metric} ({kept})"
        metrics[name] = Metric(value=float(value), num_items=count, interval=interval)
    return metrics


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
