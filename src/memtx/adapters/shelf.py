"""Where the memories of a library stand: their places in the base, and who reads what."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, cast, final
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

from memtx.adapters.checkpointing import switch_on
from memtx.adapters.choices import Choice, names_of, stages_of
from memtx.adapters.compilation import forget_compiled
from memtx.adapters.devices import settle
from memtx.adapters.hooks import attach
from memtx.adapters.insertion import Insertion, Site
from memtx.adapters.memory import Memory, check_memory, num_slots
from memtx.adapters.place import Place
from memtx.adapters.readers import Assignment, Rows, Seat
from memtx.adapters.reading import Contexts, Reading
from memtx.adapters.tenancy import Tenancy
from memtx.checks import require
from memtx.memory.prompts import require_one_prompt
from memtx.tensor.attention import LinearMemoryAttention

_SERIALS = count()
# The name under which a memory stands in some library.
_TAKEN: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@final
@dataclass(frozen=True, kw_only=True)
class _Ticket:
    """What a memory was given when it came: a number of its own, and layers of caches."""

    serial: int
    first_slot: int


@final
class Shelf:
    """Holds the memories of a library, and the hooks by which they are read.

    Args:
        base: the model.
        owner: the library, which refuses.
        held: the memories by name; filled and emptied here.

    Source: memtx's own.

    Example:
        >>> Shelf.__name__  # made by MemoryLibrary
        'Shelf'
    """

    def __init__(self, *, base: nn.Module, owner: nn.Module, held: nn.ModuleDict) -> None:
        self.base = base
        self.owner = owner
        self.held = held
        self.rows = Rows()
        self.reading = Reading(base=base, wanted=False, first_slot=0)
        self.tenancy = Tenancy.enter(base)
        self._is_open = True
        self._tickets: dict[str, _Ticket] = {}
        self._places: dict[tuple[int, Site], Place] = {}
        self._seats: dict[tuple[int, Site], dict[str, Seat]] = {}
        self._hooks: dict[tuple[int, Site], list[RemovableHandle]] = {}
        self._reading_hooks: list[RemovableHandle] = []

    def memory(self, name: str) -> Memory:
        """Give a memory by its name.

        Args:
            name: a name that there is.
        """
        # A module's own attributes are no names of memories: `pop` and `keys` are good names.
        return cast("Memory", self.held._modules[name])

    def _insertions(self, name: str) -> list[Insertion]:
        return cast("list[Insertion]", list(self.memory(name).insertions))

    def add(self, *, name: str, memory: Memory) -> None:
        """Put a memory into the base.

        Args:
            name: what it is called.
            memory: the memory.

        Raises:
            ValueError: if the name or the memory cannot be taken.
        """
        require(
            ok=self._is_open,
            owner=self.owner,
            rule="a library must be in its base to take a memory",
            got={"name": name, "removed": True},
            remedy="make a new MemoryLibrary on the base",
        )
        require(
            ok=isinstance(name, str) and bool(name.strip()) and "." not in name,
            owner=self.owner,
            rule="a name must be text that is not empty and has no dot",
            got={"name": name},
            remedy="name it by letters, for example",
        )
        require(
            ok=name not in self.held._modules,
            owner=self.owner,
            rule="a name must be given to one memory only",
            got={"name": name, "names": list(self.held._modules)},
            remedy="choose another name, or delete that memory first",
        )
        require(
            ok=isinstance(memory, Memory),
            owner=self.owner,
            rule="memory must be a Memory",
            got={"name": name, "memory": type(memory).__name__},
            remedy="pass Memory(banks=[...], insertions=[...]), without a base",
        )
        taken = _TAKEN.get(memory)
        require(
            ok=taken is None,
            owner=self.owner,
            rule="a memory must be in one library only, under one name",
            got={"name": name, "already in a library as": taken},
            remedy="delete it there first, or add a copy.deepcopy of it",
        )
        banks, insertions = list(memory.banks), cast("list[Insertion]", list(memory.insertions))
        check_memory(owner=self.owner, base=self.base, banks=banks, insertions=insertions)
        settle(base=self.base, banks=banks, insertions=insertions)
        first_slot = self.tenancy.reserve(num_slots(insertions))
        _TAKEN[memory] = name
        self.held._modules[name] = memory
        self._tickets[name] = _Ticket(serial=next(_SERIALS), first_slot=first_slot)
        self._update()

    def take_out(self, name: str) -> Memory:
        """Take a memory out and give it back.

        Args:
            name: a name that there is.
        """
        memory = self.memory(name)
        del self.held._modules[name]
        _TAKEN.pop(memory, None)
        self.tenancy.release(self._tickets.pop(name).first_slot)
        self._update()
        return memory

    def _update(self) -> None:
        """Hook the places that memories have, and no others."""
        wanted = {
            (each.layer, each.site) for name in self._tickets for each in self._insertions(name)
        }
        if wanted != set(self._places):
            forget_compiled()
        for key in set(self._places) - wanted:
            for handle in self._hooks.pop(key):
                handle.remove()
            del self._places[key]
        for key in sorted(wanted - set(self._places), key=lambda key: (key[0], key[1].value)):
            place = Place(layer=key[0], site=key[1], rows=self.rows, reading=self.reading)
            self._places[key] = place
            self._hooks[key] = attach(
                base=self.base, insertion=place, is_on=place.is_on, reading=self.reading
            )
        asks = any(each.asks_for_context for n in self._tickets for each in self._insertions(n))
        if asks != self.reading.wanted:
            self.reading.wanted = asks
            while self._reading_hooks:
                self._reading_hooks.pop().remove()
            self._reading_hooks = self.reading.attach()
        self._seats = {key: {} for key in self._places}
        for name, ticket in self._tickets.items():
            states = any(isinstance(m, LinearMemoryAttention) for m in self.memory(name).modules())
            for insertion in self._insertions(name):
                self._seats[insertion.layer, insertion.site][name] = Seat(
                    insertion=insertion,
                    serial=ticket.serial,
                    first_slot=ticket.first_slot,
                    keeps_states=states,
                )
        self.activate(self.rows.activated.choices[0])

    def require_one_order(self, choices: list[Choice]) -> None:
        """Refuse choices by which a routed memory would be read twice at one place of a forward.

        Args:
            choices: what each row is to read; their names are known.

        Raises:
            ValueError: if a routed memory is not as far back in all choices that name it.
        """
        for name in self._tickets:
            orders = {
                number
                for choice in choices
                for number, stage in enumerate(stages_of(choice))
                if name in stage
            }
            require(
                ok=len(orders) < 2 or not any(i.asks_for_context for i in self._insertions(name)),
                owner=self.owner,
                rule="a routed memory must stand at the same place of the order in all rows, since "
                "it has one place in a cache",
                got={"name": name, "places": sorted(orders)},
                remedy="order the names of every InTurn alike",
            )

    def assignment(self, choices: list[Choice], *, everyone: bool) -> Assignment:
        """Tell what choices come to at each place.

        Args:
            choices: what each row reads; their names are known.
            everyone: whether the one choice is for all rows.
        """
        places = {
            place.name: place.readers(choices, self._seats[key])
            for key, place in self._places.items()
        }
        return Assignment(choices=choices, everyone=everyone, places=places)

    def activate(self, choice: Choice) -> None:
        """Let all rows of every batch read another memory.

        Args:
            choice: what they read; its names are known.
        """
        self.rows.activated = self.assignment([choice], everyone=True)

    def require_one_prompt(self, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Refuse a generation that cannot tell the prompt, if a memory that is read must know it.

        Args:
            args: the positional arguments of `generate`.
            options: the others.

        Raises:
            ValueError: if it cannot.
        """
        names = [name for choice in self.rows.now.choices for name in names_of(choice)]
        require_one_prompt(
            owner=self.owner,
            parts=[p for n in names if self.reading.is_on for p in self.memory(n).modules()],
            config=self.base.generation_config,
            args=args,
            options=options,
        )

    def close(self) -> None:
        """Take all memories out of the base, and leave it as it was."""
        if not self._is_open:
            return
        self._is_open = False
        self.activate(None)
        for name in list(self._tickets):
            self.take_out(name)
        self.tenancy.leave()

    def recompute(self, options: dict[str, Any], how: dict[str, Any]) -> None:
        """Switch gradient checkpointing on.

        Args:
            options: passed to `torch.utils.checkpoint`; `use_reentrant` is among them.
            how: passed to the base's own switch beside them.

        Raises:
            ValueError: if the kind is the one with reentry.
        """
        require(
            ok=not options["use_reentrant"],
            owner=self.owner,
            rule="gradient checkpointing must be without reentry: the kind with it cannot know "
            "which memories the rows of a forward read",
            got={"use_reentrant": options["use_reentrant"]},
            remedy="leave use_reentrant out, or pass False",
        )
        switch_on(base=self.base, options=options, wrap=self._replaying, how=how)

    def _replaying(self, inner: Callable[[], Contexts]) -> Callable[[], Contexts]:
        # Of a method, so that a deep copy of the library recomputes with its own.
        return partial(self._contexts, self.reading.replaying(inner))

    def _contexts(self, inner: Callable[[], Contexts]) -> Contexts:
        first, again = inner()
        return first, self._replay(self.rows.now, self.rows.repeats, again)

    @contextmanager
    def _replay(
        self, assignment: Assignment, repeats: bool, inner: AbstractContextManager[Any]
    ) -> Iterator[None]:
        with self.rows.named(assignment), self.rows.repeating(repeats), inner:
            yield
