"""Write a table, a grid's or a paper's, as results/tables/<name>.csv, .md and .tex.

Of a grid, results/metrics/<name>/ too, which `dvc metrics show` reads.

python pipeline/tables.py camvid
python pipeline/tables.py paper-dcc-voc
"""

import argparse

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", help="a grid of params.yaml, or a paper's table of results/reference/tables.yaml"
    )
    name = parser.parse_args().name
    # Here, for --help and ctrl-C need not wait for pandas.
    from semiseg.report import dvc, papers, published, tables
    from semiseg.report.collect import collect

    params = parameters.load()
    if name in published.load().tables:
        paper = papers.collect(params, name)
        written, text = papers.write(paper), papers.terminal(paper)
    else:
        results = collect(params, name)
        written, text = tables.write(results), tables.terminal(results)
    if name in params.grids:
        written.append(dvc.write_metrics(collect(params, name)))
    print(text, "", "Written: " + ", ".join(map(str, written)), sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
