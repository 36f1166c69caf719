"""The look of every figure: on light and on dark backgrounds, for all eyes."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FAINT",
    "TEXT",
    "color_of",
    "new_figure",
    "plain_axes",
    "save",
    "to_svg",
    "weight_ticks",
]

# Of about the same lightness, to be readable on white and on black, and told apart by the
# colour-blind.
_COLORS = ("#e0752d", "#3f8fd0", "#24a07a", "#b86bc4", "#b59320", "#8a8f98")
#: Of text and axes.
TEXT = "#7d7d7d"
#: Of grid lines.
FAINT = "#9c9c9c55"


def color_of(index: int) -> str:
    """The colour of the run with this index, in every figure."""
    return _COLORS[index % len(_COLORS)]


def new_figure(width: float, height: float) -> "Figure":
    """A figure with a transparent background that arranges its axes by itself.

    Args:
        width, height: in inches of 100 pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.patch.set_alpha(0)
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axis: "Axes", *, grid: str = "y") -> None:
    """Give an axes the common look: no frame, faint grid lines, grey text.

    Args:
        grid: the direction of values, "x", "y" or "both".
    """
    axis.patch.set_alpha(0)
    axis.grid(axis=grid, color=FAINT)
    axis.set_axisbelow(True)
    axis.tick_params(colors=TEXT, labelsize=9)
    axis.title.set(color=TEXT, size=10)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=TEXT, size=9)
    for side, spine in axis.spines.items():
        spine.set(visible=side in ("bottom", "left"), color=TEXT)


def weight_ticks(axis: "Axes") -> None:
    """Label a vertical axis of log2 of weights, on which everything is drawn already, with the
    weights: 1/4, 1/2, 1, 2, ... It reaches from 0.7 to 1.4 at least: less is no difference."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def weight(log2: float, _) -> str:
        if log2 != round(log2):
            return f"{2**log2:.2g}"
        return f"{2**log2:g}" if log2 >= 0 else f"1/{2**-log2:g}"

    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -0.5), max(high, 0.5))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(FuncFormatter(weight))


def save(figure: "Figure", file: Path) -> None:
    """Write a figure; the ending chooses the format.

    Raises:
        UserError: the file can't be written.
    """
    drawn = io.BytesIO()
    _without_formulas(figure).savefig(drawn, format=Path(file).suffix[1:], dpi=150)
    write_bytes(Path(file), drawn.getvalue())


def to_svg(figure: "Figure") -> str:
    """The figure as an SVG element for an HTML page, whose text and axes have the page's colour."""
    import matplotlib

    stream = io.StringIO()
    # Text stays text: it can be searched and read aloud.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        _without_formulas(figure).savefig(stream, format="svg", metadata=nothing)
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace(TEXT, "currentColor")


def _without_formulas(figure: "Figure") -> "Figure":
    """Names of runs and classes may have dollar signs in them."""
    from matplotlib.text import Text

    for drawn in figure.findobj(Text):
        drawn.set_parse_math(False)
    return figure
