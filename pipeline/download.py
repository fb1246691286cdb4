"""Prepare a dataset, or repair one that has changed: python pipeline/download.py <dataset>."""

import argparse

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors
from semiseg.data import sources, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    name = parser.parse_args().dataset
    params = parameters.load()
    dataset = parameters.look_up(params.datasets, name, "datasets")
    print(summary.summary(sources.prepare(name, dataset)))


if __name__ == "__main__":
    with one_line_errors():
        main()
