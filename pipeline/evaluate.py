"""Evaluate one trained run and write its record and short history.

python pipeline/evaluate.py <recipe> <split> <seed>
"""

import argparse

from semiseg.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("split")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    # Here, for --help and ctrl-C need not wait for torch.
    from semiseg import checkpoint, config, device, paths, record, scoring
    from semiseg.data import prepared, splits

    run = config.load().run(paths.Run(arguments.recipe, arguments.split, arguments.seed))
    dataset = prepared.open_dataset(run.split.dataset, run.dataset)
    split = splits.read(arguments.split, arguments.seed)
    with device.claimed(run.protocol.threads) as chosen:
        result = scoring.score_run(run, dataset, split, chosen)
    scoring.condense_history(run.run)
    record.write(result, run.run.metrics)
    checkpoint.forget(run.run.checkpoints)
    print(f"{run.run}: mIoU {result.miou:.1%} on {result.evaluated_on} ({result.headline}, last step)")


if __name__ == "__main__":
    with one_line_errors():
        main()
