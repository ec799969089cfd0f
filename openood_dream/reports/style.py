"""The look that all figures share: one width, one palette, light and dark; tick labels that leave each other room."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from typing import Any

from openood_dream.extras import check_installed

with suppress(ImportError):  # of the extra "report", of which `styled` tells
    import matplotlib
    from matplotlib import colors, patheffects
    from matplotlib.collections import Collection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

WIDTH, DPI = 10.0, 150  # inches, dots an inch
GAP = 3  # dots between two tick labels at least
# Okabe and Ito's palette: apart from each other for every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
PAPER, SOFT, EDGE, FAINT, PALE, GRID = "#FFFFFF", "#555555", "#888888", "#BBBBBB", "#D4D4D4", "#E8E8E8"
# What a colour becomes on a dark page; those of the palette that are not here can be seen on both.
DARK = {
    PAPER: "#14171A",
    BLACK: "#E6E9EB",
    SOFT: "#A8B0B7",
    EDGE: "#7C858C",
    FAINT: "#5A636B",
    PALE: "#454D54",
    GRID: "#2A3036",
    BLUE: "#3D9BD6",
    RED: "#F07A32",
}
STYLE: Any = {  # Any, since matplotlib names all its keys in a type
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # names come from users: a dollar sign is a dollar sign
    **{key: BLACK for key in ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")},
}


def styled(more: Mapping[str, Any] | None = None) -> AbstractContextManager:
    """The look that all figures have, within the block.

    Args:
        more: keys of matplotlib's, over STYLE.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_installed("figures", "matplotlib")
    return matplotlib.rc_context(STYLE | (more or {}))


class Picture(bytes):
    """A figure as PNG, on white; `dark` is the same for dark pages."""

    def __new__(cls, figure: Figure) -> Picture:
        """Draws the figure."""
        found = super().__new__(cls, _drawn(figure))
        found.figure = figure
        return found

    figure: Figure

    @cached_property
    def dark(self) -> bytes:
        """The same figure in the colours of a dark page, as PNG."""
        darken(self.figure)
        return _drawn(self.figure)


def png(fig: Figure) -> Picture:
    """A figure as PNG; tick labels that would touch others are left out."""
    thin_ticks(fig)
    return Picture(fig)


def _drawn(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, facecolor=fig.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def write_title(fig: Figure, title: str) -> None:
    """Writes the title of a figure at its left.

    Args:
        fig: the figure.
        title: its title.
    """
    fig.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")


def tick_labels(fig: Figure) -> Iterator[Text]:
    """The tick labels of a figure that can be seen."""
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            yield from (label for label in labels if label.get_visible() and label.get_text())


def thin_ticks(fig: Figure) -> None:
    """Hides tick labels that would touch one before them."""
    fig.set_dpi(DPI)
    fig.draw_without_rendering()
    taken: list[Bbox] = []
    for label in list(tick_labels(fig)):
        box = label.get_window_extent().padded(GAP / 2)
        if box.count_overlaps(taken):
            label.set_visible(False)
        else:
            taken.append(box)


def darken(fig: Figure) -> None:
    """Gives a figure the colours of a dark page; images stay as they are."""
    for artist in fig.findobj():
        if isinstance(artist, Text):
            artist.set_color(_darker(artist.get_color()))
            if artist.get_path_effects():  # the halo of a name among points
                artist.set_path_effects([patheffects.withStroke(linewidth=2, foreground=DARK[PAPER])])
        elif isinstance(artist, Line2D):
            for part in ("color", "markeredgecolor", "markerfacecolor"):
                getattr(artist, f"set_{part}")(_darker(getattr(artist, f"get_{part}")()))
        elif isinstance(artist, Patch):
            artist.set_edgecolor(_darker(artist.get_edgecolor()))
            artist.set_facecolor(_darker(artist.get_facecolor()))
        elif isinstance(artist, Collection):
            artist.set_edgecolor([_darker(colour) for colour in artist.get_edgecolor()])
            artist.set_facecolor([_darker(colour) for colour in artist.get_facecolor()])


def _darker(colour: Any) -> Any:
    """What a colour becomes on a dark page, as transparent as it is."""
    if isinstance(colour, str) and colour in ("none", "auto"):
        return colour
    *_, alpha = rgba = colors.to_rgba(colour)
    return colors.to_rgba(DARK.get(colors.to_hex(rgba).upper(), rgba), alpha)
