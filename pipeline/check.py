"""Refuse a wrong params.yaml before any work, and note what each stage depends on: python pipeline/check.py.

Writes data/ingredients/, see semiseg/ingredients.py.
"""

import argparse
import shutil

from semiseg import config, ingredients, paths
from semiseg.errors import one_line_errors
from semiseg.files import write_text


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = config.load()
    config.check_options(params)
    place = paths.DATA / "ingredients"
    fresh = paths.DATA / ".ingredients.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    for file, text in ingredients.everything(params):
        write_text(fresh / file, text)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)


if __name__ == "__main__":
    with one_line_errors():
        main()
