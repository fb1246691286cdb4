"""Predict your own images with a trained run.

python pipeline/predict.py <recipe> <split> <seed> <image> … --out <folder>

Images are files, folders and patterns in quotes. Each gets a mask <name>.png, a palette PNG of class ids at
the image's own size, predicted with the headline network at the last step as evaluation does it. An image of
more than 16.8 million pixels (4096 x 4096), or one that does not fit into the GPU's memory, is predicted in
tiles.
"""

import argparse
from pathlib import Path

from semiseg.base.errors import one_line_errors
from semiseg.base.processes import quick_imports


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("split")
    parser.add_argument("seed", type=int)
    parser.add_argument("images", nargs="*", metavar="image", help="a file, a folder, or a pattern in quotes")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the masks go")
    parser.add_argument("--overlay", action="store_true", help="also write <name>.overlay.jpg and legend.png")
    parser.add_argument(
        "--probabilities", action="store_true", help="also write <name>.npy: (classes, rows, columns) float16"
    )
    parser.add_argument("--network", metavar="NAME", help="another network of the run, such as teacher")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a model.pt instead of the run's own")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--export", nargs=2, metavar=("onnx", "FILE"), help="write the network itself, with or without images"
    )
    arguments = parser.parse_args()
    if bool(arguments.images) != (arguments.out is not None) or not (arguments.images or arguments.export):
        parser.error("give images and --out, or --export onnx FILE, or both")
    # Imported here so that --help and ctrl-C need not wait for torch.
    with quick_imports():
        import torch

        from semiseg.base import parameters, paths
        from semiseg.data import prepared, splits
        from semiseg.evaluation import export, predict, trained
        from semiseg.models.network import SegmentationNetwork
        from semiseg.training.device import claimed

    run = parameters.load().run(paths.Run(arguments.recipe, arguments.split, arguments.seed))
    form, exported = (arguments.export[0], Path(arguments.export[1])) if arguments.export else ("onnx", None)
    if exported is not None:
        export.check(exported, form, overwrite=arguments.overwrite)
    images = predict.find_images(arguments.images)
    outputs = predict.Outputs(arguments.overlay, arguments.probabilities)
    if arguments.out is not None:
        predict.check(images, arguments.out, outputs, run.dataset.classes, overwrite=arguments.overwrite)
    state = trained.state(run, arguments.weights, arguments.network)

    def scored(device: torch.device) -> SegmentationNetwork:
        """Return the network as evaluation scores it."""
        network = trained.network(run, state, device)
        if run.protocol.evaluation.recalibrate is not None:
            dataset = prepared.open_dataset(run.dataset_name, run.dataset)
            split = splits.read(arguments.split, arguments.seed)
            trained.recalibrate(network, run, dataset, split, device)
        return network

    if exported is not None:
        export.onnx(scored(torch.device("cpu")), exported)
        print(f"{exported}: the network as {form}")
    if arguments.out is not None:
        with claimed(run.protocol.threads) as chosen:
            predict.predict(scored(chosen), run, images, arguments.out, outputs, chosen)
        print(f"{arguments.out}: {len(images)} masks")


if __name__ == "__main__":
    with one_line_errors():
        main()
