"""The training loop."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from memtx.checks import require, require_positive
from memtx.data.protocols import Stream
from memtx.modes import keeping_modes
from memtx.train.groups import ParameterGroup, check_partition, freezing
from memtx.train.loggers import Logger, Record
from memtx.train.optimizer import Optimizer
from memtx.train.parallel import Parallelism
from memtx.train.precision import Precision
from memtx.train.run import Callback, Patient, Run, Saver, Start, Surrounding
from memtx.train.schedules import Schedule
from memtx.train.signals import leave, stop_signals
from memtx.train.step import Stepper
from memtx.train.terms import Objective


@runtime_checkable
class Evaluation(Protocol):
    """Something measured during training: every so many steps, it gives named numbers."""

    every: int

    def measure(self) -> Record:
        """Measure now."""


# What each part must be able to do, where the trainer takes one, and where several.
_ONE = {
    "objective": "counts",
    "optimizer": "make",
    "schedule": "factor",
    "precision": "context",
    "parallelism": "wrap",
    "start": "begin",
}
_SEVERAL = {
    "groups": "parameters",
    "evaluations": "measure",
    "callbacks": "after_step",
    "checkpoints": "save",
    "loggers": "log",
}


@final
@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Minimise an objective over streams of batches, in one process or several.

    A stream stands at its next batch, and a run goes on from there. Process `r` of `W` takes, in
    step `s` of a run with `A` accumulation steps, the batches `((s - 1) A + a) W + r` from there:
    two processes see in a step just what one sees with twice the accumulation, and every mean is
    over the tokens of that whole global batch.

    Args:
        objective: the model and its terms.
        streams: batches by stream name, as the objective's terms read them.
        groups: parameter groups that partition the trainable parameters.
        optimizer: made for the groups when the run starts.
        schedule: factor on every learning rate.
        precision: arithmetic of the forward.
        parallelism: the processes, as `launched` gives them.
        start: where the run starts: `Fresh()`, or from what was saved.
        steps: optimizer steps of the whole run; the schedule's length.
        accumulation: batches per process and step.
        clip_norm: largest norm of the whole gradient.
        evaluations: measured on every process, logged by the first.
        callbacks: called after each step on every process, in this order; patient ones perhaps when
            the next step is on its way.
        checkpoints: saved on every process when due, and once more at the end.
        loggers: receive the records of the first process.

    Raises:
        ValueError: if a part is no instance of its kind, sizes are below 1, the schedule has
            another length, a stream is missing, or two groups have one name or all are frozen.

    Source: nanochat's and torchtitan's loops, with token-exact means over accumulation.

    Example:
        >>> Trainer.__name__  # composed in full in factories/teaching.py
        'Trainer'
    """

    objective: Objective
    streams: Mapping[str, Stream]
    groups: list[ParameterGroup]
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    parallelism: Parallelism
    start: Start
    steps: int
    accumulation: int
    clip_norm: float
    evaluations: Sequence[Evaluation]
    callbacks: Sequence[Callback]
    checkpoints: Sequence[Saver]
    loggers: Sequence[Logger]

    def __post_init__(self) -> None:
        self._require_parts()
        require_positive(owner=self, sizes={"steps": self.steps, "accumulation": self.accumulation})
        for evaluation in self.evaluations:
            require_positive(owner=self, sizes={"evaluation.every": evaluation.every})
        require(
            ok=self.schedule.length in {None, self.steps},
            owner=self,
            rule="the schedule must be as long as the run",
            got={"steps": self.steps, "schedule.total_steps": self.schedule.length},
            remedy="give both the same number of steps",
        )
        require(
            ok=sorted(self.streams) == self.objective.streams,
            owner=self,
            rule=f"streams must be exactly those the terms read, {self.objective.streams}",
            got={"streams": sorted(self.streams)},
            remedy="name each stream as a term's stream",
        )
        require(
            ok=self.clip_norm > 0.0,
            owner=self,
            rule="clip_norm must be positive",
            got={"clip_norm": self.clip_norm},
            remedy="pass math.inf to clip nothing",
        )
        names = [group.name for group in self.groups]
        require(
            ok=len(set(names)) == len(names) and not all(group.frozen for group in self.groups),
            owner=self,
            rule="groups must have distinct names, and one of them a learning rate above 0",
            got={"groups": [(group.name, group.learning_rate) for group in self.groups]},
            remedy="name each group differently, and train one",
        )

    def _require_parts(self) -> None:
        """Refuse what is no instance of what a parameter takes, before it fails in the midst."""
        found = [(name, [getattr(self, name)]) for name in _ONE]
        for name in _SEVERAL:
            held = getattr(self, name)
            found.append((name, [*held] if isinstance(held, list | tuple) else [(held,)]))
        streams = self.streams
        found.append(("streams", [*streams.values()] if isinstance(streams, Mapping) else [()]))
        faces = _ONE | _SEVERAL | {"streams": "next_batch"}
        for name, parts in found:
            for part in parts:
                plain = part is None or isinstance(part, str | int | float | type)
                require(
                    ok=hasattr(part, faces[name]) and not isinstance(part, type),
                    owner=self,
                    rule=f"{name} must be of instances with `{faces[name]}`",
                    got={name: part if plain else type(part).__name__},
                    remedy="pass ready instances, in a list or dict where it takes several",
                )

    def run(self) -> list[Record]:
        """Train, and give the records of all steps that were taken.

        Raises:
            ValueError: if the groups do not partition the trainable parameters.
            FloatingPointError: if loss or gradient stop being finite, or a guard among the
                callbacks objects; the parameters are those of the step before and what was saved
                stays.
            KeyboardInterrupt: after SIGINT, when the run was saved.
            SystemExit: with 143 after SIGTERM, when the run was saved.
        """
        records: list[Record] = []
        check_partition(model=self.objective, groups=self.groups)
        with (
            self._closing(),
            keeping_modes(self.objective),
            freezing(self.groups),
            stop_signals() as asked,
            ExitStack() as around,
        ):
            run = self._begin()
            for callback in self.callbacks:
                if isinstance(callback, Surrounding):
                    around.enter_context(callback.around(run))
            stepper = Stepper(
                run=run,
                schedule=self.schedule,
                precision=self.precision,
                accumulation=self.accumulation,
                clip_norm=self.clip_norm,
            )
            with self._telling(stepper, records):
                # Batches that were fetched ahead are learnt before a run ends: what is saved at its
                # end then stands where its streams stand.
                while run.step < self.steps and (run.stop is None or stepper.is_ahead):
                    holds = self._holds(run)
                    waits = holds or self._waits(run)
                    for record in stepper.take(asked=asked.name, holds=holds, waits=waits):
                        records.append(record)
                        self._look(run, record=record)
                    self._save(run, records, last=run.stop is not None and not stepper.is_ahead)
        leave(run.stop)
        return records

    def _begin(self) -> Run:
        """Make the run, and bring it to its start."""
        wrapped = self.parallelism.wrap(self.objective)
        groups = [group for group in self.groups if not group.frozen]
        run = Run(
            objective=self.objective,
            wrapped=wrapped,
            streams=self.streams,
            groups=groups,
            optimizer=self.optimizer.make(groups),
            scaler=self.precision.scaler(self.parallelism.device),
            parallelism=self.parallelism,
            callbacks=self.callbacks,
            settings={
                "schedule": self.schedule,
                "precision": self.precision,
                "accumulation": self.accumulation,
                "clip_norm": self.clip_norm,
            },
            steps=self.steps,
            step=0,
            stop=None,
        )
        self.objective.train()
        self.start.begin(run)
        for logger in self.loggers if self.parallelism.rank == 0 else []:
            logger.begin(step=run.step)
        return run

    def _holds(self, run: Run) -> bool:
        """Tell whether the next step may be the last, is saved, or may end the run by a measure."""
        step = run.step + 1
        due = any(saver.is_due(step) for saver in self.checkpoints)
        measured = any(step % evaluation.every == 0 for evaluation in self.evaluations)
        return due or measured or step == self.steps or run.stop is not None

    def _waits(self, run: Run) -> bool:
        """Tell whether somebody has to be told of the next step right behind it."""
        patient = [each for each in self.callbacks if isinstance(each, Patient)]
        return len(patient) < len(self.callbacks) or any(
            each.is_urgent(run.step + 1) for each in patient
        )

    def _look(self, run: Run, *, record: Record) -> None:
        """Measure, call back and log."""
        step = int(record["step"])
        measured = [each for each in self.evaluations if step % each.every == 0]
        if measured:
            with self.parallelism.whole(run.wrapped):
                for evaluation in measured:
                    record |= evaluation.measure()
        for callback in self.callbacks:
            callback.after_step(run, record)
        self._log(record)

    def _log(self, record: Record) -> None:
        for logger in self.loggers if self.parallelism.rank == 0 else []:
            logger.log(record)

    def _save(self, run: Run, records: list[Record], *, last: bool) -> None:
        """Save what is due, and everything after the last step."""
        for saver in self.checkpoints:
            if saver.is_due(run.step) or last or run.step == self.steps:
                saver.save(run, records[-1])

    @contextmanager
    def _telling(self, stepper: Stepper, records: list[Record]) -> Iterator[None]:
        """Let loggers know of every step that was taken, should something end the run."""
        try:
            yield
        except BaseException:
            # It may have ended the device as well.
            with suppress(Exception):
                for record in stepper.rest():
                    records.append(record)
                    self._log(record)
            raise

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Close savers and loggers at the end, all of them, and raise the first error there was."""
        first: BaseException | None = None
        try:
            yield
        except BaseException as error:
            first = error
        parts: list[Saver | Logger] = [*self.checkpoints, *self.loggers]
        for part in parts:
            try:
                part.close()
            except Exception as error:
                if first is None:
                    first = error
                else:
                    first.add_note(f"Then {type(part).__name__} could not close: {error}")
        if first is not None:
            raise first
