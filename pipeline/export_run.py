"""Pack an evaluated run into one file: python pipeline/export_run.py <recipe>/<split>/<seed> [--out <file>].

The tar file holds the trained networks, history, predictions and record of the run, with SHA256SUMS of each.
"""

import argparse
from pathlib import Path

from semiseg.base.errors import UserError, one_line_errors
from semiseg.base.processes import quick_imports


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="<recipe>/<split>/<seed>, such as cmb/camvid-1_8/0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: <recipe>_<split>_<seed>.tar")
    arguments = parser.parse_args()
    names = arguments.run.split("/")
    if len(names) != 3 or not all(names) or not names[2].isdecimal():
        raise UserError(f"'{arguments.run}': not a run; give <recipe>/<split>/<seed>")
    recipe, split, seed = names
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        from semiseg.base.paths import Run
        from semiseg.evaluation import pack

    path = arguments.out or Path(f"{recipe}_{split}_{seed}.tar")
    print(f"{pack.pack(Run(recipe, split, int(seed)), path)}  {path}")


if __name__ == "__main__":
    with one_line_errors():
        main()
