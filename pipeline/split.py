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
    parameters.check_seed(seed)
    split = parameters.look_up(params.splits, name, "splits")
    dataset = prepared.open_dataset(split.dataset, params.datasets[split.dataset])
    with_mask, without_mask = dataset.by_mask()
    share, batch = params.share(name), params.protocols[split.protocol].labelled_batch
    count = share.labelled_count(len(with_mask))
    if count < batch:
        raise UserError(
            f"params.yaml: datasets: {split.dataset}: shares: {split.share}: {count} labelled images are "
            f"fewer than a batch of {batch}; raise the share, or lower labelled_batch in {split.protocol}"
        )
    if share.lists == parameters.DRAWN:
        written = splits.write(name, seed, with_mask, count, split.dataset, without_mask)
    else:
        source = params.datasets[split.dataset].source
        written = lists.write(name, seed, share.lists, source, (*with_mask, *without_mask), count)
    prepared.check_labelled(dataset, written.labelled)
    print(
        f"{name}, seed {seed}: {len(written.labelled)} labelled, {len(written.unlabelled)} unlabelled images"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
