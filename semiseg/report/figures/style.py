"""How every figure looks, and how it is written."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from semiseg.base.files import written_whole
from semiseg.base.parameters import Params

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow (too pale on white).
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p")

# Of classes in a panel: Okabe and Ito's seven, then Paul Tol's muted nine and four more, unlike ones first.
CLASS_COLOURS = (
    *("#56B4E9", "#CC79A7", "#F0E442", "#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#332288", "#DDCC77", "#882255", "#8C510A", "#A6A6A6", "#117733", "#88CCEE"),
    *("#44AA99", "#999933", "#AA4499", "#CC6677", "#F4A6C0", "#5E3C99"),
)
BACKGROUND = "#1A1A1A"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "errorbar.capsize": 3,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}
WIDTH = 7.2  # inches
NARROWEST = 6.0  # points of mIoU that an axis spans, so that it does not magnify noise

METADATA: dict[str, dict[str, str | None]] = {  # no date: the same figure is the same file
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def look(params: Params, recipe: str) -> dict[str, Any]:
    """The recipe's colour and marker, the same in every figure of every grid.

    Those that bear their method's name have colours that no variant has. No two recipes share both, for up to
    forty variants of three methods.
    """
    named = [name for name, each in params.recipes.items() if name == each.method]
    if recipe in named:
        place = named.index(recipe)
        return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
    colours = COLOURS[len(named) :] or COLOURS
    turn, place = divmod([name for name in params.recipes if name not in named].index(recipe), len(colours))
    return {"color": colours[place], "marker": MARKERS[(turn + place) % len(MARKERS)]}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.png for the screen and <stem>.pdf for print; return both paths."""
    written = []
    for kind, metadata in METADATA.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        with written_whole(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
        written.append(path)
    return written
