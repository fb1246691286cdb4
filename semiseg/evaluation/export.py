"""Write a trained network as a file for other runtimes."""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from semiseg.base.errors import UserError
from semiseg.base.files import written_whole
from semiseg.models.network import SegmentationNetwork

FORMATS = ("onnx",)
PACKAGES = ("onnx", "onnxscript")  # that torch needs to write ONNX
SIZE = (160, 128)  # pixels, rows and columns of the images that the network is traced with


def check(path: Path, form: str, *, overwrite: bool) -> None:
    """Raise UserError unless a network can be written to ``path`` in the format ``form``."""
    if form not in FORMATS:
        raise UserError(f"--export {form}: there is {', '.join(FORMATS)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"{path}: exists; give another file, or --overwrite")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--export onnx needs {', '.join(missing)}; pip install -c constraints.txt -e '.[onnx]'"
        )


def onnx(network: SegmentationNetwork, path: Path) -> None:
    """Write ``network``, which lies on the CPU, as ONNX.

    Its input ``images`` is (B, 3, H, W) float32 RGB in [0, 1], its output ``logits`` (B, C, H, W) float32,
    for any B, H and W. It is the network at the images' own size: a long side, windows and a flip, if the
    protocol's ``evaluation`` asks for them, are left to the caller. Raises UserError for a network that pools
    to a grid (PSPNet): ONNX has no such layer for images of any size.
    """
    for module in network.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            raise UserError("--export onnx: ONNX has no pooling to a grid, which this network needs (PSPNet)")
    dynamic = {"images": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}}
    with torch.inference_mode(), warnings.catch_warnings(), written_whole(path) as temporary:
        warnings.simplefilter("ignore")  # about the exporter's own code
        program = torch.onnx.export(
            network.eval(),
            (torch.rand(2, 3, *SIZE),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(temporary)
