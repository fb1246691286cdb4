"""Fetch the pretrained weights of a protocol: python pipeline/weights.py <protocol>.

Only weights of timm's hub (weights: hub) need it before training. For other weights it saves the nodes that
train from reaching the network.
"""

import argparse

from semiseg.base.errors import one_line_errors
from semiseg.base.processes import quick_imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("protocol")
    arguments = parser.parse_args()
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        from semiseg.base import parameters
        from semiseg.models import weights

    params = parameters.load()
    network = parameters.look_up(params.protocols, arguments.protocol, "protocols").network
    print(weights.fetch(network) or f"{arguments.protocol} starts from random weights")


if __name__ == "__main__":
    with one_line_errors():
        main()
