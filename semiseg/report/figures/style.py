"""Style figures and write their files."""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from semiseg.base.files import written_whole
from semiseg.report.collect import Results

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow (too pale on white); then
# colours that are each as far as possible from all before them in CIE Lab.
COLOURS = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#4D0066", "#8C0023", "#66500F", "#98B247", "#D921D9", "#214FD9", "#006600"),
    *("#6B6B6B", "#D9A08D", "#00B200", "#D9217D", "#0000D9", "#662947"),
)
OWN = 14  # the first colours are those of recipes named like their method
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p")

# Classes in a panel: Okabe and Ito's seven, then Paul Tol's muted nine and four more, unlike ones first.
CLASS_COLOURS = (
    *("#56B4E9", "#CC79A7", "#F0E442", "#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#332288", "#DDCC77", "#882255", "#8C510A", "#A6A6A6", "#117733", "#88CCEE"),
    *("#44AA99", "#999933", "#AA4499", "#CC6677", "#F4A6C0", "#5E3C99"),
)
BACKGROUND = "#1A1A1A"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "text.parse_math": False,  # a dollar sign in a name is one
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
    "savefig.facecolor": "white",
}
WIDTH = 7.2  # inches
NARROWEST = 6.0  # points of mIoU that an axis spans, so that it does not magnify noise

RESOLUTIONS = (160, 110, 75, 50)  # dots an inch: the first that makes a file small enough
LARGEST = 5_000_000  # bytes of a file in git

METADATA: dict[str, dict[str, str | None]] = {  # no date: the same figure is the same file
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def look(results: Results, recipe: str) -> dict[str, Any]:
    """Return the colour and the marker of a row of a grid; no two rows share both.

    A recipe named like its method has the same colour in every grid. The others share out the colours that
    these leave: up to 20 rows have colours of their own.
    """
    methods = [name for name, each in results.params.recipes.items() if name == each.method]
    if recipe in methods:
        place, colours = methods.index(recipe), COLOURS[:OWN]
    else:
        rows = [row for row in results.recipes if row not in methods]
        taken = {COLOURS[methods.index(row) % OWN] for row in results.recipes if row in methods}
        place = rows.index(recipe)
        colours = tuple(each for each in COLOURS[OWN:] + COLOURS[:OWN] if each not in taken)
    turn, place = divmod(place, len(colours))
    return {"color": colours[place], "marker": MARKERS[(turn + place) % len(MARKERS)]}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.png for the screen and <stem>.pdf for print, small enough to commit; return both paths."""
    written = []
    for kind, metadata in METADATA.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        for dpi in RESOLUTIONS:
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=dpi, metadata=metadata)
            if len(content.getbuffer()) <= LARGEST:
                break
        with written_whole(path) as temporary:
            temporary.write_bytes(content.getvalue())
        written.append(path)
    return written
