"""Write the lists of one split and seed: python pipeline/split.py <split> <seed>."""

import argparse

from semiseg import config
from semiseg.data import prepared, splits
from semiseg.errors import UserError, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    params = config.load()
    split = config.look_up(params.splits, arguments.split, "splits")
    dataset = prepared.open_dataset(split.dataset, params.datasets[split.dataset])
    ids = dataset.ids("train")
    count, batch = split.labelled_count(len(ids)), params.protocols[split.protocol].labelled_batch
    if count < batch:
        raise UserError(
            f"params.yaml: splits: {arguments.split}: {count} labelled images are fewer than a batch of "
            f"{batch}; raise the ratio or lower protocols: {split.protocol}: labelled_batch"
        )
    written = splits.write(arguments.split, arguments.seed, ids, count, split.dataset)
    print(
        f"{arguments.split}, seed {arguments.seed}: "
        f"{len(written.labelled)} labelled, {len(written.unlabelled)} unlabelled images"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
