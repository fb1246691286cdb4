"""Write a grid's table and figures, and results/report.html: python pipeline/report.py [<grid>].

Without a grid only the page is written: it shows all records and belongs to no single grid.
"""

import argparse
import sys

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", help="a grid of params.yaml; without it, only the page is written")
    name = parser.parse_args().grid
    # Imported here so that --help and ctrl-C need not wait for pandas and matplotlib.
    from semiseg.report import page, write

    params = parameters.load()
    if name is not None:
        text, written = write.grid(params, name)
        print(text, "", "Written: " + ", ".join(map(str, written)), sep="\n")
    for refused in page.write(params):
        print(f"warning: not in {page.INDEX}: {refused}", file=sys.stderr)
    print(f"Written: {page.INDEX}")


if __name__ == "__main__":
    with one_line_errors():
        main()
