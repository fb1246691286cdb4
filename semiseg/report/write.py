"""Write all files of a grid: its table, its figures, and what DVC shows of it."""

from pathlib import Path

from semiseg.base.parameters import Params
from semiseg.report import dvc, papers, reference, tables
from semiseg.report.collect import collect


def table(params: Params, name: str) -> tuple[str, list[Path]]:
    """Write the table ``name``, a grid's or a paper's; return it for a terminal, and the paths written."""
    if name in reference.load().tables:
        paper = papers.collect(params, name)
        text, written = papers.terminal(paper), papers.write(paper)
    else:
        results = collect(params, name)
        text, written = tables.terminal(results), tables.write(results)
    if name in params.grids:
        written.append(dvc.write_metrics(collect(params, name)))
    return text, written


def grid(params: Params, name: str) -> tuple[str, list[Path]]:
    """Write a grid's table, figures and plots; return the table for a terminal, and the paths written."""
    from semiseg.report.figures import kinds  # matplotlib, which a table alone need not wait for

    text, written = table(params, name)
    results = collect(params, name)
    kinds.write(results)
    return text, [*written, kinds.folder(name), *dvc.write_plots(results)]
