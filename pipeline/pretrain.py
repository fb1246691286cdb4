"""Pretrain a backbone without masks: python pipeline/pretrain.py <name>.

<name> is an entry of params.yaml's pretraining. One that asks for several GPUs claims them and starts this
stage once on each.
"""

import argparse

from semiseg.base.errors import one_line_errors
from semiseg.base.processes import quick_imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name")
    arguments = parser.parse_args()
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        from semiseg.base import distributed, locks, parameters
        from semiseg.data import prepared
        from semiseg.training import device, launch

    params = parameters.load()
    config = params.pretraining_config(arguments.name)
    gpus, threads = config.recipe.gpus, config.recipe.threads
    dataset = prepared.open_dataset(config.recipe.dataset, config.dataset)
    prepared.check_scored(dataset, "val")
    if gpus > 1 and not launch.started():
        # The lock first, here and below, so that a second start does not wait for a device.
        with locks.held(config.run), device.claimed_together(gpus):
            launch.start(str(config.run), gpus)
        return
    with quick_imports():  # not before, because the process that starts the others needs none of these
        from semiseg.evaluation.probe import Probe
        from semiseg.training import pretrain

    if launch.started():
        with launch.one_of_several():
            chosen = device.of_process(threads)
            with distributed.joined(chosen):
                pretrain.pretrain(config, dataset, chosen, Probe.of(config, dataset, chosen))
    else:
        with locks.held(config.run), device.claimed(threads) as chosen:
            pretrain.pretrain(config, dataset, chosen, Probe.of(config, dataset, chosen))


if __name__ == "__main__":
    with one_line_errors():
        main()
