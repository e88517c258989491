"""Sub-layers put at one place of one decoder layer."""

from enum import Enum
from typing import final

import torch
from torch import Tensor, nn

from memtx.checks import require
from memtx.context import Context
from memtx.expression import component
from memtx.interfaces import Branch


class Site(Enum):
    """Where in a decoder layer an insertion stands."""

    AFTER_ATTENTION = "after_attention"
    """Between the attention's residual sum and the MLP's norm."""

    AFTER_MLP = "after_mlp"
    """After the MLP's residual sum, at the end of the layer."""


@final
@component
class Insertion(nn.Module):
    """Residual sub-layers at one site of one decoder layer of a pretrained model.

    Args:
        layer: index of the decoder layer, from 0.
        site: where in the layer.
        sublayers: `Residual` sub-layers, applied in order to the stream.

    Shapes:
        `[batch, length, dim]` to `[batch, length, dim]`.

    Raises:
        ValueError: if `layer` is negative, `site` is not a `Site`, or the sub-layers are missing
            or differ in width.

    Source: variants A and B of the mixture-of-chapters source, as places in a frozen layer.

    Example:
        >>> from memtx import Insertion, Linear, Normal, Residual, RMSNorm, Site, SwiGLU, Zeros
        >>> def linear() -> Linear:
        ...     return Linear(in_features=4, out_features=4, bias=False, init=Normal(std=0.02))
        >>> zero = Linear(in_features=4, out_features=4, bias=False, init=Zeros())
        >>> mlp = SwiGLU(gate_proj=linear(), up_proj=linear(), down_proj=zero)
        >>> Insertion(layer=0, site=Site.AFTER_MLP,
        ...           sublayers=[Residual(norm=RMSNorm(dim=4, eps=1e-5), sublayer=mlp)]).dim
        4
    """

    def __init__(self, *, layer: int, site: Site, sublayers: list[Branch]) -> None:
        super().__init__()
        require(
            ok=isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0,
            owner=self,
            rule="layer must be an index from 0",
            got={"layer": layer},
            remedy="count decoder layers from 0",
        )
        require(
            ok=isinstance(site, Site),
            owner=self,
            rule="site must be a Site",
            got={"site": site},
            remedy=f"use {' or '.join(str(known) for known in Site)}",
        )
        strangers = [type(each).__name__ for each in sublayers if not isinstance(each, Branch)]
        require(
            ok=not strangers,
            owner=self,
            rule="sublayers must be Residual sub-layers",
            got={"sublayers": strangers},
            remedy="wrap each in Residual(norm=..., sublayer=...)",
        )
        widths = [sublayer.dim for sublayer in sublayers]
        require(
            ok=len(set(widths)) == 1,
            owner=self,
            rule="sublayers must be at least one, all of one width",
            got={"widths": widths},
            remedy="pass Residual sub-layers of the base's hidden size",
        )
        self.layer = layer
        self.site = site
        self.sublayers = nn.ModuleList(sublayers)  # type: ignore[arg-type]

    @property
    def dim(self) -> int:
        """Width of the stream."""
        return int(self.sublayers[0].dim)  # type: ignore[arg-type]

    @property
    def asks_for_context(self) -> bool:
        """Whether a sub-layer uses what is known of the tokens beyond the stream."""
        inner = (getattr(sublayer, "sublayer", sublayer) for sublayer in self.sublayers)
        return not all(getattr(part, "ignores_context", False) for part in inner)

    def in_own_dtype(self, stream: Tensor) -> Tensor:
        """Give a stream in the dtype of the sub-layers.

        Args:
            stream: the residual stream.
        """
        # Autocast chooses dtypes itself: a copy in float32 would only be read and written again.
        kind = stream.device.type
        mixed = kind != "meta" and torch.is_autocast_enabled(kind)
        return stream if mixed else stream.to(next(self.parameters()).dtype)

    def forward(self, stream: Tensor, context: Context | None = None) -> Tensor:
        """Give what the sub-layers together add to the stream, in the stream's dtype.

        They run in the dtype of their own parameters (or under autocast), so a float32 memory
        trains exactly on a bfloat16 base.

        Args:
            stream: the residual stream at the site.
            context: its tokens; None for whole rows without padding or cache.

        Raises:
            ValueError: if the stream is on another device.
        """
        device = next(self.parameters()).device
        if device != stream.device:
            require(
                ok=False,
                owner=self,
                rule="memory must stand on the device of its layer",
                got={
                    "layer": self.layer,
                    "site": str(self.site),
                    "memory": str(device),
                    "stream": str(stream.device),
                },
                remedy="move the memory there, or attach it again, which moves it",
            )
        own = self.in_own_dtype(stream)
        added: Tensor | None = None
        for sublayer in self.sublayers:
            here = own if added is None else own + added
            read = sublayer.branch(here, context)  # type: ignore[operator]
            added = read if added is None else added + read
        if added is None:
            raise RuntimeError("Insertion: sublayers must not be empty; build it anew.")
        return added.to(stream.dtype)
