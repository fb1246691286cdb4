"""Say what a grid will take before it is run: python pipeline/plan.py <grid>.

It counts the runs that are done, names records that do not count and why, and estimates the hours and disk of
the runs that are left from finished ones. With --measure it trains a few steps of each run that no finished
one resembles. With --card it computes, without a GPU, which recipes fit its memory, and which change makes
the others fit.
"""

import argparse
import math

from semiseg.base import parameters
from semiseg.base.errors import UserError, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="a grid of params.yaml")
    parser.add_argument(
        "--measure", action="store_true", help="train some steps of what no finished run is like"
    )
    parser.add_argument(
        "--card", type=float, metavar="GIB", help="compute which recipes fit a GPU with so much memory"
    )
    arguments = parser.parse_args()
    if arguments.card is not None and not 0 < arguments.card < math.inf:
        raise UserError(f"--card: {arguments.card} is not a positive number of GiB")
    # Imported here so that --help and ctrl-C need not wait for numpy.
    from semiseg.report import plan
    from semiseg.report.collect import survey

    params = parameters.load()
    results, refused = survey(params, arguments.grid)
    measured = plan.NOTHING
    if arguments.measure and (lacking := plan.without_estimate(results)):
        from semiseg.report import throughput  # imports torch

        measured = throughput.measured(params, lacking)
    print(plan.terminal(results, refused, measured))
    if arguments.card is not None:
        from semiseg.report import memory  # imports torch

        print(f"\n{memory.terminal(params, arguments.grid, arguments.card)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
