"""Draw a grid's figures and rebuild results/report.html: python pipeline/report.py [<grid>].

Without a grid only the page is rebuilt: it is a view over all records and belongs to no single grid's stage.
"""

import argparse
import sys

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", nargs="?", help="a grid of params.yaml; without it, the page alone")
    name = parser.parse_args().grid
    # Here, for --help and ctrl-C need not wait for pandas and matplotlib.
    from semiseg.report import dvc, page
    from semiseg.report.collect import collect
    from semiseg.report.figures import kinds

    params = parameters.load()
    if name is not None:
        results = collect(params, name)
        kinds.write(results)
        dvc.write_plots(results)
    for refused in page.write(params):
        print(f"warning: not in {page.PAGE}: {refused}", file=sys.stderr)
    print(f"Written: {page.PAGE}")


if __name__ == "__main__":
    with one_line_errors():
        main()
