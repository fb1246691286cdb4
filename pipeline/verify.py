"""Read a prepared dataset again; exits 1 if a file has changed: python pipeline/verify.py <dataset>."""

import argparse
import sys

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors
from semiseg.data import prepared, verification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    name = parser.parse_args().dataset
    dataset = prepared.open_dataset(name, parameters.look_up(parameters.load().datasets, name, "datasets"))
    changed, foreign = list(verification.changed(dataset)), verification.foreign(dataset)
    for problem in (*changed, *foreign):
        print(f"error: {problem}", file=sys.stderr)
    if changed:
        print(f"error: {dataset.folder}: {len(changed)} changed; {prepared.remedy(name)}", file=sys.stderr)
    if changed or foreign:
        sys.exit(1)
    print(f"{dataset.folder}: every list, image and mask is as it was prepared")


if __name__ == "__main__":
    with one_line_errors():
        main()
