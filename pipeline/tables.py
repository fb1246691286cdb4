"""Write and print a grid's table without its figures: python pipeline/tables.py <grid>.

The table goes to results/tables/<grid>.csv, .md and .tex, and the figures of `dvc metrics show` to
results/metrics/<grid>/. A paper's table of results/reference/tables.yaml can be named too.
"""

import argparse

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="a grid of params.yaml, or a paper's table")
    name = parser.parse_args().grid
    # Imported here so that --help and ctrl-C need not wait for pandas.
    from semiseg.report import write

    text, written = write.table(parameters.load(), name)
    print(text, "", "Written: " + ", ".join(map(str, written)), sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
