"""Plots in one style: what is drawn is data first, so that it can be compared without drawing."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999"]
IDLE = "#d9d9d9"
COLUMNS = 3
DPI = 110


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines over a logarithmic axis, and levels across it."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float]]]
    levels: dict[str, float]
    log_y: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.series

    @property
    def names(self) -> list[str]:
        """What is told apart by colour."""
        return [*self.series, *self.levels]

    def with_levels(self, levels: dict[str, float]) -> "Lines":
        """Give the same with further levels."""
        return replace(self, levels={**self.levels, **levels})


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars side by side, each of one part or several; a mark is a line across a bar.

    Bars of one part have the colour of memtx or of the others.
    """

    title: str
    x_label: str
    rows: dict[str, dict[str, float]]
    marks: dict[str, float]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.rows

    @property
    def names(self) -> list[str]:
        """What is told apart by colour."""
        return list(dict.fromkeys(part for row in self.rows.values() for part in row if part))


Panel = Lines | Bars


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture: its file beside the page, and its panels."""

    path: Path
    title: str
    panels: list[Panel]

    @property
    def digest(self) -> str:
        """What tells it from any other, written into the picture."""
        content = json.dumps(asdict(self), default=str, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def has_parts(self) -> bool:
        """Whether colours tell parts of bars or lines, which a legend names."""
        return any(panel.names for panel in self.panels)


def draw(plot: Plot, path: Path) -> None:
    """Draw a plot into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(plot.panels))
    if all(isinstance(panel, Bars) for panel in plot.panels):
        columns = min(2, columns)
    rows = math.ceil(len(plot.panels) / columns)
    heights = [max(height(p) for p in plot.panels[i * columns :][:columns]) for i in range(rows)]
    size = (4.6 * columns + (1.6 if columns < COLUMNS else 0.0), sum(heights) + 0.9)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flatten()
    names = list(dict.fromkeys(name for panel in plot.panels for name in panel.names))
    colors = {name: COLORS[at % len(COLORS)] for at, name in enumerate(names)} | {"idle": IDLE}
    for axes, panel in zip(grid, plot.panels, strict=False):
        (draw_lines if isinstance(panel, Lines) else draw_bars)(axes, panel, colors)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid[len(plot.panels) :]:
        axes.set_axis_off()
    if plot.has_parts:
        handles = {}
        for axes in grid:
            handles |= {
                label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
        where = {"loc": "outside lower center", "ncols": min(5, len(handles)), "fontsize": 8}
        figure.legend(handles.values(), handles.keys(), frameon=False, **where)
    figure.suptitle(plot.title, fontsize=11)
    figure.savefig(path, metadata={"Software": None, "Description": plot.digest})


def height(panel: Panel) -> float:
    """Give the inches that a panel takes."""
    if isinstance(panel, Lines):
        return 3.0
    lines = sum(1 + name.count("\n") for name in panel.rows)
    return 0.9 + 0.26 * lines


def draw_lines(axes: Any, panel: Lines, colors: dict[str, str]) -> None:
    """Draw lines and levels."""
    for name, points in panel.series.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colors[name], marker="o", markersize=4, linewidth=1.5, label=name)
    for name, level in panel.levels.items():
        axes.axhline(level, color=colors[name], linestyle="--", linewidth=1.2, label=name)
    axes.set_xscale("log", base=2)
    places = sorted({x for points in panel.series.values() for x, _ in points})
    axes.set_xticks(places, [counted(x) for x in places])
    axes.minorticks_off()
    if panel.log_y:
        write_logarithms(axes, [y for points in panel.series.values() for _, y in points])
    else:
        axes.set_ylim(bottom=0.0, top=1.15 * axes.get_ylim()[1])
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.set_ylabel(panel.y_label, fontsize=8)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def write_logarithms(axes: Any, values: list[float]) -> None:
    """Scale the axis by logarithms, with numbers as they are written in tables."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    many = max(values) > 100.0 * min(values)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0,) if many else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def counted(x: float) -> str:
    """Write a count that is a power of two shortly."""
    for step, letter in ((2**20, "Mi"), (2**10, "Ki")):
        if x >= step and x % step == 0:
            return f"{x // step:.0f}{letter}"
    return f"{x:g}"


def draw_bars(axes: Any, panel: Bars, colors: dict[str, str]) -> None:
    """Draw bars from the top down, each with its whole beside it, and marks across them."""
    for place, (name, parts) in enumerate(panel.rows.items()):
        start = 0.0
        for part, value in parts.items():
            color = colors[part] if part else COLORS[not name.startswith("memtx")]
            axes.barh(place, value, left=start, height=0.7, color=color, label=part)
            start += value
        axes.text(start, place, f" {start:.3g}", va="center", fontsize=8)
        if name in panel.marks:
            at = panel.marks[name]
            axes.plot([at, at], [place - 0.45, place + 0.45], color="black", linewidth=2.0)
    axes.set_yticks(range(len(panel.rows)), list(panel.rows))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
