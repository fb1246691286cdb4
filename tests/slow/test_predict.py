"""pipeline/predict.py as a person starts it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.base import parameters
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.evaluation import trained
from semiseg.models.network import SegmentationNetwork
from tests import miniature, processes

RUN = str(miniature.run("supervised"))
VAL = "data/mini/JPEGImages"


def start(script: str, *arguments: str) -> tuple[int, processes.Stage]:
    """Run a script of pipeline/ for the run, forked in the working directory."""
    return processes.run(script, *RUN.split("/"), *arguments)


def refusal(ended: tuple[int, processes.Stage]) -> str:
    """Return the one line of a start that was refused."""
    status, stage = ended
    assert status == 2, stage.said()
    (line,) = (line for line in stage.said().splitlines() if "error: " in line)
    return line


@pytest.fixture
def trained_project(mini_project: Path) -> Path:
    """Return the miniature project, in which the run is trained and evaluated."""
    for script in ("train", "evaluate"):
        status, stage = start(script)
        assert status == 0, stage.said()
    return mini_project


def test_a_folder_of_images_becomes_masks(trained_project: Path) -> None:
    status, stage = start("predict", VAL, "--out", "out", "--overlay")
    assert status == 0, stage.said()
    assert "out: 10 masks\n" in stage.said()
    own = Path("runs", RUN, "predictions")
    for path in own.iterdir():
        assert path.read_bytes() == Path("out", path.name).read_bytes()
        assert decode_mask(Path("out", path.name), None, 3).shape == (48, 48)
    assert "out/" in refusal(start("predict", VAL, "--out", "out"))
    assert "nobody" in refusal(start("predict", VAL, "--out", "other", "--network", "nobody"))
    written = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    weights = ("--weights", f"runs/{RUN}/model.pt")
    status, stage = start("predict", f"{VAL}/*0*", "--out", "out", "--overwrite", *weights)
    assert status == 0, stage.said()
    assert any(path.stat().st_mtime_ns > before for path, before in written.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out"),
        ([VAL], "--out"),
        (["none.jpg", "--out", "out"], "none.jpg"),
        ([VAL, "--out", "out", "--weights", "none.pt"], "none.pt"),
        (["--export", "tflite", "file"], "tflite"),
        (["--export", "onnx", "params.yaml"], "params.yaml"),
    ],
)
def test_bad_input_is_refused_in_one_line(mini_project: Path, arguments: list[str], said: str) -> None:
    assert said in refusal(start("predict", *arguments))
    assert not Path("out").exists()


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="the extra onnx is not installed",
)
def test_onnxruntime_gives_the_exported_network_s_logits(trained_project: Path) -> None:
    import onnxruntime

    status, stage = start("predict", "--export", "onnx", "deep/network.onnx")
    assert status == 0, stage.said()
    (file,) = Path("deep").iterdir()  # weights and all
    config = parameters.load().run(miniature.run("supervised"))
    network: SegmentationNetwork = trained.network(config, trained.state(config), torch.device("cpu")).eval()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    photograph = decode_image(next(Path(VAL).iterdir())).transpose(2, 0, 1)[None].astype(np.float32) / 255
    noise = np.random.default_rng(0).random((2, 3, 90, 133), dtype=np.float32)
    for images in (photograph, noise, noise[:1, :, :33, :64]):
        (logits,) = session.run(["logits"], {"images": images})
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
        assert logits.shape == expected.shape
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
