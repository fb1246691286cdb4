"""Say what a grid will take before it is run: python pipeline/plan.py <grid>.

Its runs, those that are done, and the hours and disk of those that are left, estimated from finished runs.
"""

import argparse

from semiseg import config
from semiseg.errors import one_line_errors
from semiseg.report import plan
from semiseg.report.collect import collect


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="a grid of params.yaml")
    print(plan.terminal(collect(config.load(), parser.parse_args().grid)))


if __name__ == "__main__":
    with one_line_errors():
        main()
