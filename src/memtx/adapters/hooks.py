"""How memory enters a decoder layer without a line of the layer rewritten."""

from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtx.adapters.families import decoder_layers, family_of
from memtx.adapters.insertion import Site
from memtx.adapters.reading import Reading
from memtx.adapters.threads import Here
from memtx.context import Context

Switch = Callable[[], bool]


@runtime_checkable
class Placed(Protocol):
    """What is read at one layer and site: an `Insertion`, or what several memories have there."""

    @property
    def layer(self) -> int:
        """Index of the decoder layer."""

    @property
    def site(self) -> Site:
        """Where in the layer."""

    def __call__(self, stream: Tensor, context: Context | None) -> Tensor:
        """Give what is added to the stream."""


def attach(
    *, base: nn.Module, insertion: Placed, is_on: Switch, reading: Reading
) -> list[RemovableHandle]:
    """Hook an insertion into its decoder layer and give the handles that take it out.

    The hooks are bound methods, so a deep copy of the adapter hooks the copy's own insertions.
    They go in front of hooks that are there already: transformers collects hidden states by hooks
    that stay once installed, and must see the stream that the memory has changed. So of two
    adapters at one place, the one that came later reads first.

    Args:
        base: the model.
        insertion: what to insert and where.
        is_on: tells, at each forward, whether the memory is read.
        reading: what is known of the tokens of each forward.
    """
    layer = decoder_layers(base)[insertion.layer]
    if insertion.site is Site.AFTER_MLP:
        after = _AfterLayer(insertion=insertion, is_on=is_on, reading=reading)
        return [layer.register_forward_hook(after.add, prepend=True)]
    family = family_of(base)
    around = _AroundBranch(insertion=insertion, is_on=is_on, reading=reading)
    first = layer.get_submodule(family.branch_first)
    last = layer.get_submodule(family.branch_last)
    return [
        first.register_forward_pre_hook(around.enter, prepend=True),
        last.register_forward_hook(around.leave, prepend=True),
    ]


def _plus(output: Any, read: Tensor) -> Any:
    """Add the read to a module's output, which some versions wrap in a tuple."""
    if isinstance(output, Tensor):
        return output + read
    stream, *rest = output
    return (stream + read, *rest)


@final
class _AfterLayer:
    """Adds the memory's read to the output of a layer."""

    def __init__(self, *, insertion: Placed, is_on: Switch, reading: Reading) -> None:
        self.insertion = insertion
        self.is_on = is_on
        self.reading = reading

    def add(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not self.is_on():
            return None
        stream = output if isinstance(output, Tensor) else output[0]
        return _plus(output, self.insertion(stream, self.reading.now()))


@final
class _AroundBranch:
    """Changes the stream between attention and MLP from outside.

    The layer adds the MLP branch to a stream that hooks cannot reach. With `m` the memory's read,
    adding `m` to the branch's input and again to its output leaves exactly the layer that the
    stream plus `m` would have gone through.
    """

    def __init__(self, *, insertion: Placed, is_on: Switch, reading: Reading) -> None:
        self.insertion = insertion
        self.is_on = is_on
        self.reading = reading
        self.here = Here()

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        # A recomputation under gradient checkpointing may stop early and leave a read behind.
        self.here.put("read", None)
        if not self.is_on():
            return None
        stream, *rest = inputs
        read = self.insertion(stream, self.reading.now())
        self.here.put("read", read)
        return (stream + read, *rest)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        read = self.here.get("read", None)
        if read is None:
            return None
        self.here.put("read", None)
        return _plus(output, read)
