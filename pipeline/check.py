"""Refuse a wrong params.yaml before any work, and note what each stage depends on: python pipeline/check.py.

Writes data/ingredients/; semiseg/stages.py says what is in it.
"""

import argparse

from semiseg import stages
from semiseg.base import parameters
from semiseg.base.errors import one_line_errors
from semiseg.base.processes import quick_imports
from semiseg.data import sources


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        from semiseg.methods import contract
        from semiseg.pretraining import contract as pretraining

    params = parameters.load()
    sources.check_options(params.datasets)
    contract.check_options(params)
    pretraining.check_options(params)
    stages.write_ingredients(params)


if __name__ == "__main__":
    with one_line_errors():
        main()
