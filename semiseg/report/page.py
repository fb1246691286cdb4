"""results/report.html: one self-contained page over all records.

It belongs to no single grid's stage: every stage that draws a grid's figures writes it anew from all the
records and figures that are there, so whichever comes last leaves it complete.
"""

import base64
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
from semiseg.report import foot, papers, reference, tables
from semiseg.report.collect import Results, best, collect, last
from semiseg.report.figures import kinds
from semiseg.report.figures.kinds import Kind
from semiseg.report.markup import to_html
from semiseg.report.papers import Paper

PAGE = RESULTS / "report.html"
LOCK = Path("runs", ".report.lock")  # a folder outside git


@dataclass(frozen=True)
class Column:
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
    Column("record"),
)


def write(params: Params) -> list[str]:
    """Write the page; return a line for each grid that it cannot show, with the reason."""
    LOCK.parent.mkdir(exist_ok=True)
    with FileLock(LOCK):  # two stages at once: the second reads what the first has written
        text, refused = render(params)
        write_text(PAGE, text)
    return refused


def render(params: Params) -> tuple[str, list[str]]:
    """The page's text, and a line for each grid that it cannot show.

    A section for every table; those without a run are folded, behind the others.
    """
    sections: list[Mapping[str, Any]] = []
    refused = []
    published = reference.load()
    for name, grid in params.grids.items():
        if name in published.tables:
            continue
        try:
            sections.append(_section(collect(params, name)))
        except UserError as error:
            refused.append({"title": grid.title, "reason": str(error)})
    for name, table in published.tables.items():
        try:
            sections.append(_paper(papers.collect(params, name)))
        except UserError as error:
            refused.append({"title": table.title, "reason": str(error)})
    sections.sort(key=lambda section: not section["begun"])  # results first
    environment = Environment(
        loader=PackageLoader("semiseg.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"marks": to_html, "brief": _brief}
    page = environment.get_template("page.html.j2").render(sections=sections, refused=refused)
    return page, [f"{each['title']}: {each['reason']}" for each in refused]


def _section(results: Results) -> Mapping[str, Any]:
    evidence = _evidence(results.name, results.grid.title, results.grid.runs(), results.records)
    begun = evidence["begun"]
    return {
        "title": results.grid.title,
        "headline": foot.headline(results),
        "last": tables.text_table(results, last),
        "dense": False,
        "best": tables.text_table(results, best) if begun else None,
        "warning": foot.warning(results),
        "missing": foot.missing(results),
        "notes": [*foot.notes(results), *(kinds.lacking(results) if begun else ())],
        **evidence,
    }


def _paper(paper: Paper) -> Mapping[str, Any]:
    return {
        "title": f"{paper.table.title}: published and measured",
        "headline": papers.headline(paper),
        "last": papers.text_table(paper),
        "dense": True,
        "best": None,
        "missing": papers.missing(paper),
        "notes": papers.notes(paper),
        **_evidence(paper.name, paper.table.title, paper.runs, paper.records),
    }


def _evidence(
    name: str, title: str, wanted: Sequence[Run], records: Mapping[Run, Record]
) -> Mapping[str, Any]:
    """What a table rests on: its runs, how many of those ``wanted`` are there, and with any its figures."""
    recipes = ", ".join(dict.fromkeys(run.recipe for run in records))
    done = sum(run in records for run in wanted)
    return {
        "name": name,
        "begun": done > 0,
        "progress": f"{done} of {foot.runs_of(len(wanted))}",
        "figures": [_figure(kind, path, title, recipes) for kind, path in kinds.shown(name) if done],
        "columns": COLUMNS,
        "runs": [_row(record) for record in records.values()],
        "cost": cost(list(records.values())),
    }


def _figure(kind: Kind, path: Path, title: str, recipes: str) -> Mapping[str, Any]:
    with Image.open(path) as image:
        width, height = image.size
    return {
        "caption": kind.caption,
        "alt": f"{title}. {kind.caption} Shown are {recipes}.",
        "data": base64.b64encode(path.read_bytes()).decode(),
        "width": width,
        "height": height,
        "wide": kind.wide,
    }


def _row(record: Record) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    origin = record.provenance
    return (
        record.recipe,
        record.split,
        str(record.seed),
        f"{100 * record.miou:.2f}",
        f"{100 * record.score(record.best).miou:.2f}",
        str(record.best.step),
        str(record.labelled),
        origin.revision,
        origin.device,
        origin.finished[:10],
        f"{origin.train_seconds / 60:.1f}",
        f"{origin.train_seconds / 3600:.2f}" if _on_gpu(record) else "",
        f"{origin.images_per_second:.1f}",
        "" if origin.peak_memory_mib is None else f"{origin.peak_memory_mib:.0f}",
        origin.config_sha256,
        origin.labelled_sha256,
        origin.data_sha256,
        Run(record.recipe, record.split, record.seed).metrics.as_posix(),
    )


def cost(records: Sequence[Record]) -> str:
    """Hours on a GPU and on a CPU, and the most memory that a run took; "" without a run."""
    gpu, cpu = ([each for each in records if _on_gpu(each) == on_gpu] for on_gpu in (True, False))
    said = []
    for some, unit in ((gpu, "GPU-hours"), (cpu, "CPU hours")):
        if some:
            hours = sum(each.provenance.train_seconds for each in some) / 3600
            said.append(f"{hours:.2f} {unit} ({foot.runs_of(len(some))})")
    peak = max((each.provenance.peak_memory_mib or 0 for each in gpu), default=0)
    memory = f"; at most {peak:,.0f} MiB of GPU memory a run" if gpu else ""
    return f"Training: {', '.join(said)}{memory}." if said else ""


def _on_gpu(record: Record) -> bool:
    """Its memory is measured there only."""
    return record.provenance.peak_memory_mib is not None


def _brief(digest: str) -> str:
    """Twelve digits of a hash, and what was said behind it ("-modified")."""
    whole, dash, remark = digest.partition("-")
    return whole[:12] + dash + remark
