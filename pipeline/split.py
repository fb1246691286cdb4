"""Write the lists of one split and seed: python pipeline/split.py <split> <seed>."""

import argparse

from semiseg.base import parameters
from semiseg.base.errors import UserError, one_line_errors
from semiseg.data import lists, prepared, splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    name, seed, params = arguments.split, arguments.seed, parameters.load()
    if seed < 0:
        raise UserError(f"{name}: seed {seed}: a seed is not negative")
    split = parameters.look_up(params.splits, name, "splits")
    dataset = prepared.open_dataset(split.dataset, params.datasets[split.dataset])
    ids = dataset.ids("train")
    with_mask = tuple(each for each in ids if dataset.mask_path(each).is_file())
    count, batch = split.labelled_count(len(with_mask)), params.protocols[split.protocol].labelled_batch
    if count < batch:
        raise UserError(
            f"params.yaml: splits: {name}: {count} labelled images are fewer than a batch of "
            f"{batch}; raise the ratio or lower protocols: {split.protocol}: labelled_batch"
        )
    if split.family == parameters.DRAWN:
        without_mask = tuple(each for each in ids if each not in set(with_mask))
        written = splits.write(name, seed, with_mask, count, split.dataset, without_mask)
    else:
        family, source = params.families[split.family], params.datasets[split.dataset].source
        written = lists.write(name, seed, split.family, family, source, ids, count)
    print(
        f"{name}, seed {seed}: {len(written.labelled)} labelled, {len(written.unlabelled)} unlabelled images"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
