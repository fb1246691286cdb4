"""Write a grid's tables (results/tables/<grid>.csv, .md, .tex): python pipeline/tables.py <grid>."""

import argparse

from semiseg import config
from semiseg.errors import one_line_errors
from semiseg.report import tables
from semiseg.report.collect import collect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", help="a grid of params.yaml")
    name = parser.parse_args().grid
    results = collect(config.load(), name)
    written = tables.write(results)
    print(tables.terminal(results), "", "Written: " + ", ".join(map(str, written)), sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
