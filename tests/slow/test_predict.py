"""pipeline/predict.py as a person starts it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.base import parameters
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.evaluation import trained
from semiseg.models.network import SegmentationNetwork
from tests import miniature

RUN = str(miniature.run("supervised"))
VAL = "data/mini/JPEGImages"


def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a script of pipeline/ for the run, in the working directory."""
    command = [sys.executable, miniature.PIPELINE / f"{script}.py", *RUN.split("/"), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a start that was refused."""
    assert result.returncode == 2, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "error: " in line)
    return line


@pytest.fixture
def trained_project(mini_project: Path) -> Path:
    """Return the miniature project, in which the run is trained and evaluated."""
    for script in ("train", "evaluate"):
        done = start(script)
        assert done.returncode == 0, done.stderr
    return mini_project


def test_a_folder_of_images_becomes_masks(trained_project: Path) -> None:
    done = start("predict", VAL, "--out", "out", "--overlay")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out: 10 masks\n"
    own = Path("runs", RUN, "predictions")
    for path in own.iterdir():
        assert path.read_bytes() == Path("out", path.name).read_bytes()
        assert decode_mask(Path("out", path.name), None, 3).shape == (48, 48)
    assert "out/" in refusal(start("predict", VAL, "--out", "out"))
    assert "nobody" in refusal(start("predict", VAL, "--out", "other", "--network", "nobody"))
    written = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    again = start("predict", f"{VAL}/*0*", "--out", "out", "--overwrite", "--weights", f"runs/{RUN}/model.pt")
    assert again.returncode == 0, again.stderr
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

    done = start("predict", "--export", "onnx", "deep/network.onnx")
    assert done.returncode == 0, done.stderr
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
