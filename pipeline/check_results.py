"""Check every result under results/runs/, and print those that the default branch does not have.

python pipeline/check_results.py

Exits with 1 if there is a problem, with a line on stderr for each. Trains nothing and needs no data.
"""

import argparse
import sys

from semiseg.base import parameters
from semiseg.base.errors import UserError, one_line_errors


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    # Imported here so that --help and ctrl-C need not wait for pandas.
    from semiseg.report import contributed

    found, problems = contributed.check(parameters.load())
    try:
        branch, lines = contributed.new(found)
        print(f"{len(found)} records; not as on {branch}: {len(lines)}", *lines, sep="\n")
    except UserError as error:
        print(f"{len(found)} records; which of them are new cannot be told: {error}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
