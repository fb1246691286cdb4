"""Evaluate one trained run and write its record and short history.

python pipeline/evaluate.py <recipe> <split> <seed>
"""

import argparse

from semiseg.base.errors import one_line_errors
from semiseg.base.processes import quick_imports


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("split")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        from semiseg.base import parameters, paths
        from semiseg.data import prepared, splits
        from semiseg.evaluation import evaluate, record
        from semiseg.training import checkpoint, device

    run = parameters.load().run(paths.Run(arguments.recipe, arguments.split, arguments.seed))
    dataset = prepared.open_dataset(run.dataset_name, run.dataset)
    split = splits.read(arguments.split, arguments.seed)
    with device.claimed(run.protocol.threads) as chosen:
        result = evaluate.score_run(run, dataset, split, chosen)
    evaluate.condense_history(run.run)
    record.write(result, run.run.metrics)
    checkpoint.forget(run.run.checkpoints)
    print(f"{run.run}: mIoU {result.miou:.1%} on {result.evaluated_on} ({result.headline}, last step)")


if __name__ == "__main__":
    with one_line_errors():
        main()
