"""Boxes with names on pictures. Importing it loads Matplotlib, which costs a second."""

from collections.abc import Sequence
from itertools import takewhile

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox, ScaledTranslation

__all__ = ["DETECTION", "FALSE", "MISSED", "PALETTE", "TRUTH", "draw_box"]

# Colours that the colour-blind tell apart, light enough for a dark label.
TRUTH, DETECTION, MISSED, FALSE = "#ffd54a", "#5fd3f3", "#ff8a4c", "#f3a2d8"
#: For classes: that of class k is number k modulo their number.
PALETTE = ("#56b4e9", "#e69f00", "#2fc79b", "#f0e442", "#f07f3c", "#e091c0")

_PADDING = 0.15  # of a label, in its font size
# Where a label looks for a place, in its height: 0, -1/4 (down), 1/4 (up), ... -3, 3.
_WIDEST = 1.5  # what still fits a box, in its width
_ROWS = [quarters / 4 for quarters in sorted(range(-12, 13), key=abs)]


def draw_box(
    axes: Axes,
    box: Sequence[float],
    label: str,
    color: str,
    *,
    font_size: float = 7.0,
    line_width: float = 1.5,
    line_style: str = "-",
    only_if_it_fits: bool = False,
) -> None:
    """Draw a box and, above it or as near as the picture and earlier labels allow, its label.

    Args:
        axes: with the picture, one unit being a pixel.
        box: XYXY in pixels.
        label: may be empty.
        color: of the box and of what is behind the label.
        font_size, line_width: in points.
        line_style: Matplotlib's.
        only_if_it_fits: leave the label out where there is no place for it at the box's upper edge
            that other labels leave, or it is much wider than the box.
    """
    x0, y0, x1, y1 = box
    style = {"fill": False, "linewidth": line_width, "linestyle": line_style, "edgecolor": color}
    # The dark edge shows the box where the picture has its colour.
    edge = withStroke(linewidth=line_width + 1.2, foreground="#00000090")
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, path_effects=[edge], **style))
    if label:
        widest = _WIDEST * (x1 - x0) if only_if_it_fits else None
        axes.add_artist(_Label(axes, x0, y0, label, color, font_size, widest))


class _Label(Text):
    """A label that finds its place when it is drawn; only then is its size known."""

    #: Where it was drawn, in pixels of the figure. None if it was left out.
    place: Bbox | None = None

    def __init__(
        self,
        axes: Axes,
        x: float,
        y: float,
        text: str,
        color: str,
        font_size: float,
        widest: float | None,
    ):
        """
        Args:
            widest: it is left out if it is wider, in pixels of the picture, or if there is no place
                for it nearby. None to draw it in any case.
        """
        self._widest = widest
        super().__init__(x, y, text, fontsize=font_size, va="bottom", parse_math=False)
        self.set_color("#111111")
        self.set_bbox({"facecolor": color, "edgecolor": "none", "pad": _PADDING * font_size})
        padding = _PADDING * font_size / 72  # in inches
        shift = ScaledTranslation(padding, padding, axes.figure.dpi_scale_trans)
        self.set_transform(axes.transData + shift)

    def draw(self, renderer):
        self.place = None
        padding = renderer.points_to_pixels(_PADDING * self.get_fontsize())
        label = self.get_window_extent(renderer).padded(padding)
        drawn = [
            text.place
            for text in takewhile(lambda text: text is not self, self.axes.texts)
            if isinstance(text, _Label) and text.place is not None
        ]
        rows_to_try = _ROWS if self._widest is None else [0, -1]  # above the edge, or below it
        candidates = [
            _within(label.translated(0, rows * label.height), self.axes.bbox)
            for rows in rows_to_try
        ]
        free = [place for place in candidates if not place.count_overlaps(drawn)]
        if self._widest is not None:
            (left, _), (right, _) = self.axes.transData.transform([(0, 0), (self._widest, 0)])
            if not free or label.width > right - left:
                return
        self.place = (free or candidates)[0]
        transform = self.get_transform()
        x, y = transform.transform(self.get_position())
        x, y = x + self.place.x0 - label.x0, y + self.place.y0 - label.y0
        self.set_position(transform.inverted().transform((x, y)))
        super().draw(renderer)


def _within(box: Bbox, picture: Bbox) -> Bbox:
    """``box`` moved into the picture; what is longer than the picture begins at its left edge."""
    right = max(picture.x0 - box.x0, min(picture.x1 - box.x1, 0))
    up = max(picture.y0 - box.y0, min(picture.y1 - box.y1, 0))
    return box.translated(right, up)
