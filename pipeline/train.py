"""Train one run: python pipeline/train.py <recipe> <split> <seed>.

A run whose recipe or grid asks for several GPUs claims them and starts this stage once on each.
"""

import argparse

from semiseg.base.errors import one_line_errors
from semiseg.base.processes import quick_imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("split")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        from semiseg.base import distributed, locks, parameters, paths
        from semiseg.data import prepared, splits
        from semiseg.training import device, launch

    params = parameters.load()
    run = params.run(paths.Run(arguments.recipe, arguments.split, arguments.seed))
    gpus = params.gpus(run.run)
    dataset = prepared.open_dataset(run.dataset_name, run.dataset)
    split = splits.read(arguments.split, arguments.seed)
    prepared.check_scored(dataset, run.dataset.evaluate)
    prepared.check_labelled(dataset, split.labelled)
    if gpus > 1 and not launch.started():
        # The lock first, here and below, so that a second start does not wait for a device.
        with locks.held(run.run), device.claimed_together(gpus):
            launch.start(str(run.run), gpus)
        return
    with quick_imports():  # not before, because the process that starts the others needs none of these
        from semiseg.evaluation.score import Scoring
        from semiseg.training import loop

    if launch.started():
        with launch.one_of_several():
            chosen = device.of_process(run.protocol.threads)
            with distributed.joined(chosen):
                loop.train(run, dataset, split, chosen, Scoring.of(run, chosen))
    else:
        with locks.held(run.run), device.claimed(run.protocol.threads) as chosen:
            loop.train(run, dataset, split, chosen, Scoring.of(run, chosen))


if __name__ == "__main__":
    with one_line_errors():
        main()
