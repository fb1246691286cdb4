"""Write results/report.html, which compares all grids, and results/report/<grid>.html for each of them.

The pages belong to no single grid's stage: every stage that draws a grid's figures writes them anew from all
the records and figures that are there, so the last one leaves them complete. They ask no host for anything;
images lie beside them, in results/figures/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import Params
from semiseg.base.paths import RESULTS, Run
from semiseg.evaluation.record import Record
from semiseg.report import collect, compare, foot, papers, pseudo_labels, reference, tables, trust
from semiseg.report.collect import Results
from semiseg.report.figures import kinds
from semiseg.report.markup import one_line, to_html
from semiseg.report.papers import Paper

INDEX = RESULTS / "report.html"
FOLDER = RESULTS / "report"
TO_RESULTS = "../"  # from a page in FOLDER
LOCK = Path("runs", ".report.lock")  # a folder outside git


@dataclass(frozen=True)
class Link:
    """A file or folder that a page leads to."""

    text: str
    address: str


@dataclass(frozen=True)
class Column:
    """A column of the table of runs."""

    name: str
    number: bool = False
    hash: bool = False  # shown short, whole under the pointer


COLUMNS = (
    Column("recipe"),
    Column("split"),
    Column("seed", number=True),
    Column("mIoU last (%)", number=True),
    Column("mIoU best (%)", number=True),
    Column("best at step", number=True),
    Column("other networks, last (%)", number=True),
    Column("further figures, last", number=True),
    Column("files"),
    Column("labelled", number=True),
    Column("revision", hash=True),
    Column("device"),
    Column("date (UTC)"),
    Column("training (min)", number=True),
    Column("GPU-hours", number=True),
    Column("images/s", number=True),
    Column("peak memory (MiB)", number=True),
    Column("configuration", hash=True),
    Column("labelled list", hash=True),
    Column("data", hash=True),
)


def write(params: Params) -> list[str]:
    """Write the pages; return a line for each grid that they cannot show, with the reason."""
    LOCK.parent.mkdir(exist_ok=True)
    with FileLock(LOCK):  # two stages at once: the second reads what the first has written
        pages, refused = render(params)
        for path, text in pages.items():
            write_text(path, text)
    return refused


def render(params: Params) -> tuple[dict[Path, str], list[str]]:
    """Return the pages' texts by path, and a line for each grid that they cannot show."""
    published = reference.load()
    outlines = {name: papers.outline(params, name, published) for name in published.tables}
    runs = [run for grid in params.grids.values() for run in grid.runs()]
    records = trust.read(params, dict.fromkeys(runs))
    shown: list[Results] = []
    sections: list[Mapping[str, Any]] = []
    refused = []
    for name in dict.fromkeys([*params.grids, *outlines]):
        try:
            if name in params.grids:
                shown.append(collect.gather(params, name, records, published))
            if name in outlines:
                sections.append(_paper(papers.gather(outlines[name], records)))
            else:
                sections.append(_grid(shown[-1]))
        except UserError as error:
            title = params.grids[name].title if name in params.grids else outlines[name].table.title
            refused.append({"title": one_line(title), "reason": str(error)})
    sections.sort(key=lambda section: not section["begun"])  # results first
    rankings = compare.rankings(params, shown)
    environment = _environment()
    index = environment.get_template("index.html.j2").render(
        rankings=rankings,
        axis=compare.axis(rankings),
        filters={
            name: list(dict.fromkeys(values))
            for name, values in (
                ("dataset", (ranking.dataset for ranking in rankings)),
                ("share", (ranking.share for ranking in rankings)),
                ("method", (each.method for ranking in rankings for each in ranking.entries)),
            )
        },
        pages={run: each.name for each in reversed(shown) for run in each.records},
        sections=sections,
        refused=refused,
    )
    pages = {INDEX: index}
    for section in sections:
        text = environment.get_template("grid.html.j2").render(section=section)
        pages[FOLDER / f"{section['name']}.html"] = text
    return pages, [f"{each['title']}: {each['reason']}" for each in refused]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("semiseg.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marks": to_html, "brief": _brief}
    return environment


def _grid(results: Results) -> Mapping[str, Any]:
    evidence = _evidence(results.name, results.grid.title, results.grid.runs(), results.records)
    begun = evidence["begun"]
    return {
        "title": one_line(results.grid.title),
        "headline": foot.headline(results),
        "last": tables.text_table(results, collect.last),
        "dense": False,
        "best": tables.text_table(results, collect.best) if begun else None,
        "pseudo_labels": pseudo_labels.table(results),
        "warning": foot.warning(results),
        "missing": foot.missing(results),
        "notes": [*foot.notes(results), *(kinds.lacking(results) if begun else ())],
        **evidence,
    }


def _paper(paper: Paper) -> Mapping[str, Any]:
    return {
        "title": f"{one_line(paper.table.title)}: published and measured",
        "headline": papers.headline(paper),
        "last": papers.text_table(paper),
        "dense": True,
        "best": None,
        "pseudo_labels": None,
        "missing": papers.missing(paper),
        "notes": papers.notes(paper),
        **_evidence(paper.name, paper.table.title, paper.runs, paper.records),
    }


def _evidence(
    name: str, title: str, wanted: Sequence[Run], records: Mapping[Run, Record]
) -> Mapping[str, Any]:
    """Return what a table rests on: its runs, how many of ``wanted`` are there, and their figures."""
    recipes = ", ".join(dict.fromkeys(run.recipe for run in records))
    done = sum(run in records for run in wanted)
    return {
        "name": name,
        "begun": done > 0,
        "progress": f"{done} of {foot.runs_of(len(wanted))}",
        "figures": [_figure(kind, path, title, recipes) for kind, path in kinds.shown(name) if done],
        "columns": COLUMNS,
        "runs": {run: _row(run, record) for run, record in records.items()},
        "cost": cost(list(records.values())),
    }


def _figure(kind: kinds.Kind, path: Path, title: str, recipes: str) -> Mapping[str, Any]:
    with Image.open(path) as image:
        width, height = image.size
    return {
        "caption": kind.caption,
        "alt": f"{one_line(title)}. {kind.caption} Shown are {recipes}.",
        "address": _address(path),
        "print": _address(path.with_suffix(".pdf")),
        "width": width,
        "height": height,
        "wide": kind.wide,
    }


def _row(run: Run, record: Record) -> tuple[str | list[Link], ...]:
    """Return a run's cells, in the order of COLUMNS."""
    origin = record.provenance
    others = [
        f"{name} {100 * score.miou:.2f}"
        for name, score in record.last.networks.items()
        if name != record.headline
    ]
    figures = [
        f"{name} {value:.4f}"
        for name, value in record.score(record.last).figures.items()
        if value is not None
    ]
    files = [Link("record", _address(run.metrics))]
    if run.history.exists():
        files.append(Link("history", _address(run.history)))
    files.append(Link("predictions", f"{TO_RESULTS}../{run.artefacts.as_posix()}/predictions/"))
    return (
        record.recipe,
        record.split,
        str(record.seed),
        f"{100 * record.miou:.2f}",
        f"{100 * record.score(record.best).miou:.2f}",
        str(record.best.step),
        ", ".join(others),
        ", ".join(figures),
        files,
        str(record.labelled),
        origin.revision,
        origin.device,
        origin.finished[:10],
        f"{origin.train_seconds / 60:.1f}",
        f"{origin.device_seconds / 3600:.2f}" if _on_gpu(record) else "",
        f"{origin.images_per_second:.1f}",
        "" if origin.peak_memory_mib is None else f"{origin.peak_memory_mib:.0f}",
        origin.config_sha256,
        origin.labelled_sha256,
        origin.data_sha256,
    )


def _address(path: Path) -> str:
    """Return the address of a file below results/, for a page in FOLDER."""
    return TO_RESULTS + path.relative_to(RESULTS).as_posix()


def cost(records: Sequence[Record]) -> str:
    """Say how long runs trained on a GPU and on a CPU, and the most memory that one took; "" without runs."""
    gpu, cpu = ([each for each in records if _on_gpu(each) == on_gpu] for on_gpu in (True, False))
    said = []
    for some, unit in ((gpu, "GPU-hours"), (cpu, "CPU hours")):
        if some:
            hours = sum(each.provenance.device_seconds for each in some) / 3600
            said.append(f"{hours:.2f} {unit} ({foot.runs_of(len(some))})")
    peak = max((each.provenance.peak_memory_mib or 0 for each in gpu), default=0)
    memory = f"; at most {peak:,.0f} MiB of GPU memory a run" if gpu else ""
    return f"Training: {', '.join(said)}{memory}." if said else ""


def _on_gpu(record: Record) -> bool:
    """Return whether a run was trained on a GPU: only there is its memory measured."""
    return record.provenance.peak_memory_mib is not None


def _brief(digest: str) -> str:
    """Return twelve digits of a hash, and what follows it ("-modified")."""
    whole, dash, remark = digest.partition("-")
    return whole[:12] + dash + remark
