"""One place of a base at which named memories are read."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from memtx.adapters.choices import Choice, stages_of
from memtx.adapters.insertion import Insertion, Site
from memtx.adapters.layout import Part, laid_out, put_back, taken
from memtx.adapters.readers import Readers, Rows, Seat
from memtx.adapters.reading import Reading
from memtx.adapters.rows import context_of
from memtx.adapters.stacking import read_stacked, signature
from memtx.checks import require
from memtx.context import Context
from memtx.modes import is_recomputing

Contexts = Callable[[int, list[int]], Context | None]


@final
class Place:
    """Reads, at one layer and site, for each row of the batch the memories that it names.

    What is read is resolved when the choices change, not in a forward: a forward finds insertions
    and row numbers alone, so that another memory of the same sizes is the same to a compiler.

    Args:
        layer: index of the decoder layer.
        site: where in the layer.
        rows: what is known of the rows.
        reading: what is known of the tokens of each forward.

    Source: mixed batches of PEFT's LoRA and Punica (Chen et al. 2023, arXiv 2310.18547), where
    each row has its adapter.

    Example:
        >>> Place.__name__  # made by MemoryLibrary
        'Place'
    """

    def __init__(self, *, layer: int, site: Site, rows: Rows, reading: Reading) -> None:
        self.layer = layer
        self.site = site
        self.rows = rows
        self.reading = reading
        self.name = f"{layer}.{site.value}"
        self._forms: dict[int, tuple[Hashable, Hashable]] = {}

    def readers(self, choices: Sequence[Choice], seats: Mapping[str, Seat]) -> Readers:
        """Tell what choices come to here.

        Args:
            choices: for each row.
            seats: what the memories read here, by name; some may read nothing here.
        """
        alike = all(choice == choices[0] for choice in choices)
        each = choices[:1] if alike else choices
        names = list(dict.fromkeys(n for c in each for s in stages_of(c) for n in s if n in seats))
        number = {name: index for index, name in enumerate(names)}
        rows = [
            [[number[name] for name in stage if name in number] for stage in stages_of(choice)]
            for choice in each
        ]
        depth = max(len(stages) for stages in rows)
        padded = [stages + [[]] * (depth - len(stages)) for stages in rows]
        stages = [[own[stage] for own in padded] for stage in range(depth)]
        taken = [seats[name] for name in names]
        present = {seat.serial for seat in seats.values()}
        self._forms = {key: form for key, form in self._forms.items() if key in present}
        alone: list[int | None] = [None] * len(names)
        return Readers(
            seats=taken,
            insertions=[seat.insertion for seat in taken],
            kinds=alone if alike else kinds([self._form(seat) for seat in taken]),
            stages=[stage for stage in stages if any(stage)],
            alike=alike,
        )

    def _now(self) -> Readers | None:
        return self.rows.now.places.get(self.name)

    def _form(self, seat: Seat) -> Hashable:
        """Give the signature of a seat; found once, unless the memory is moved or cast."""
        first = next(seat.insertion.parameters())
        key = (first.dtype, first.device, seat.insertion.training)
        if seat.serial not in self._forms or self._forms[seat.serial][0] != key:
            self._forms[seat.serial] = (key, signature(seat.insertion))
        form = self._forms[seat.serial][1]
        return None if form is None else (form, seat.insertion.training)

    def is_on(self) -> bool:
        """Tell whether anything is read here.

        Raises:
            RuntimeError: in a recomputation that does not know which forward it repeats.
        """
        if is_recomputing() and not self.reading.replays:
            raise RuntimeError(
                "MemoryLibrary: a recomputation must know which forward it repeats, got gradient "
                "checkpointing that was not switched on by the library; call the library's "
                "gradient_checkpointing_enable() instead of the base's."
            )
        now = self._now()
        return self.reading.is_on and now is not None and bool(now.stages)

    def __call__(self, stream: Tensor, context: Context | None) -> Tensor:
        """Give what is added to the stream; zeros for a row that reads nothing.

        Args:
            stream: the residual stream `[batch, length, dim]`.
            context: its tokens; None if no memory asks for them.

        Raises:
            ValueError: if the batch has another number of rows than were named.
        """
        batch = stream.shape[0]
        repeats = self._repeats(batch)
        now = self._now()
        added: Tensor | None = None
        if now is None:
            return torch.zeros_like(stream)

        def known(seat: int, rows: list[int]) -> Context | None:
            return _context(context, seat=now.seats[seat], rows=rows, batch=batch)

        for stage in now.stages:
            here = stream if added is None else stream + added
            if now.alike:
                everyone = list(range(batch))
                reads = [now.insertions[seat](here, known(seat, everyone)) for seat in stage[0]]
                read = torch.stack(reads).sum(dim=0) if len(reads) > 1 else reads[0]
            else:
                readers = [seats for seats in stage for _ in range(repeats)]
                read = read_rows(readers, now.kinds, now.insertions, here, known)
            added = read if added is None else added + read
        return torch.zeros_like(stream) if added is None else added

    def _repeats(self, batch: int) -> int:
        count, everyone = len(self.rows.now.choices), self.rows.now.everyone
        fits = batch == count or (self.rows.repeats and batch % count == 0)
        if not everyone and not fits:
            require(
                ok=False,
                owner="MemoryLibrary",
                rule="rows must name a memory, or None, for each row of the batch",
                got={"names": count, "batch": batch},
                remedy="name as many as there are rows; call the library's generate, not the "
                "base's, where rows are repeated for beams",
            )
        return 1 if everyone else batch // count


def _context(context: Context | None, *, seat: Seat, rows: list[int], batch: int) -> Context | None:
    if context is None or not seat.insertion.asks_for_context:
        return context
    if seat.keeps_states and context.cache is not None and len(rows) < batch:
        require(
            ok=False,
            owner="MemoryLibrary",
            rule="a tensor memory must be read by all rows of a batch or by none where there is a "
            "cache, which has no place for the states of some rows",
            got={"rows that read it": rows, "batch": batch},
            remedy="pass use_cache=False, or generate for these rows apart",
        )
    return context_of(
        context, serial=seat.serial, first_slot=seat.first_slot, rows=rows, batch=batch
    )


def kinds(forms: Sequence[Hashable]) -> list[int | None]:
    """Number signatures from 0, so that another memory of the same sizes has the same number.

    Args:
        forms: the signatures; None where there is none.
    """
    return [None if form is None else forms.index(form) for form in forms]


def read_rows(
    readers: Sequence[Sequence[int]],
    kinds: Sequence[int | None],
    insertions: Sequence[Insertion],
    stream: Tensor,
    contexts: Contexts,
) -> Tensor:
    """Read for each row what it names: rows of one memory together, memories of one size too.

    Args:
        readers: for each row, the numbers of the insertions that read it.
        kinds: for each insertion, a number that those of one signature share; None for one that
            must be read by itself.
        insertions: what is read.
        stream: the residual stream `[batch, length, dim]`.
        contexts: gives what rows of an insertion know of their tokens.
    """
    parts = laid_out(readers, kinds)
    reads = [_read_part(part, insertions, stream, contexts) for part in parts]
    return put_back(reads, [row for part in parts for row in part.rows], stream)


def _read_part(
    part: Part, insertions: Sequence[Insertion], stream: Tensor, contexts: Contexts
) -> Tensor:
    rows = taken(stream, part.gather)
    if len(part.seats) == 1:
        seat = part.seats[0]
        read: Tensor = insertions[seat](rows, contexts(seat, part.rows))
        return read
    sets = rows.unflatten(0, (len(part.seats), -1))
    stacked = read_stacked([insertions[seat] for seat in part.seats], sets).flatten(0, 1)
    return stacked if len(part.keep) == len(part.gather) else taken(stacked, part.keep)


def read_rows_reference(
    readers: Sequence[Sequence[int]],
    kinds: Sequence[int | None],  # noqa: ARG001
    insertions: Sequence[Insertion],
    stream: Tensor,
    contexts: Contexts,
) -> Tensor:
    """Read row by row: the definition.

    Args:
        readers: for each row, the numbers of the insertions that read it.
        kinds: not used.
        insertions: what is read.
        stream: the residual stream `[batch, length, dim]`.
        contexts: gives what rows of an insertion know of their tokens.
    """
    rows = []
    for row, seats in enumerate(readers):
        own = stream[row : row + 1]
        reads = [insertions[seat](own, contexts(seat, [row])) for seat in seats]
        rows.append(torch.stack(reads).sum(dim=0) if reads else torch.zeros_like(own))
    return torch.cat(rows)
