"""Look at a folder of your own images and masks: python pipeline/new_dataset.py <folder> [--write].

It prints what the folder holds, what is wrong with it, and an entry for params.yaml: the dataset, a protocol
and a grid for a laptop, and both for a GPU. It writes nothing; with --write it adds the entry to params.yaml.
Exits with 1 if the folder has a problem.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from semiseg.base import parameters, paths
from semiseg.base.errors import one_line_errors
from semiseg.base.files import write_text
from semiseg.data import entry, inspection


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="with images/ and masks/, or any other layout that pairs names")
    parser.add_argument("--write", action="store_true", help="add the entry to params.yaml")
    arguments = parser.parse_args()
    name = entry.free_name(parameters.load(), arguments.folder)
    found = inspection.inspect(arguments.folder)
    print(inspection.report(found, entry.class_names(found)))
    if found.problems:
        print(f"\n{arguments.folder}: {len(found.problems)} problem(s) to solve first", file=sys.stderr)
        sys.exit(1)
    new = entry.entry(name, found)
    text = paths.PARAMS.read_bytes().decode()
    longer = entry.inserted(text, new)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, paths.PARAMS)
        write_text(trial, longer)
        parameters.load(trial)
    if arguments.write:
        write_text(paths.PARAMS, longer)
        print(f"\n{paths.PARAMS}: added '{name}'; name its classes there.")
        print(f"Then run a small grid: snakemake {name}{entry.SMALL} --cores 2")
    else:
        print("\nFor params.yaml (--write, or make's WRITE=1, adds it):\n")
        for section, lines in new.items():
            print(f"{section}:", *(f"  {line}" for line in lines.splitlines()), sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
