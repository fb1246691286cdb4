"""Say what a grid will take before it is run: python pipeline/plan.py <grid>.

Its runs, those that are done, and the hours and disk of those that are left, estimated from finished runs.
With --measure some steps are trained, here and now, of what no finished run is like.
"""

import argparse

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="a grid of params.yaml")
    parser.add_argument(
        "--measure", action="store_true", help="train some steps of what no finished run is like"
    )
    arguments = parser.parse_args()
    # Here, for --help and ctrl-C need not wait for pandas.
    from semiseg.report import plan
    from semiseg.report.collect import collect

    results, measured = collect(parameters.load(), arguments.grid), plan.NOTHING
    if arguments.measure and (lacking := plan.without_estimate(results)):
        from semiseg.report import (
            throughput,  # imports torch, for which a plan by finished runs need not wait
        )

        measured = throughput.measured(lacking)
    print(plan.terminal(results, measured))


if __name__ == "__main__":
    with one_line_errors():
        main()
