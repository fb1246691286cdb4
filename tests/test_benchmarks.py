"""The one command for a GPU: parts end in time, are kept, and are not measured again."""

import json
import time
from pathlib import Path

from benchmarks import gpu
from benchmarks.gpu import Part


def test_a_part_is_measured_once_and_one_that_was_cut_off_again(tmp_path: Path) -> None:
    until = time.monotonic() + 100
    note = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); print(1)"
    for _ in range(2):
        gpu.measure(Part("quick", ("-c", note), 30), tmp_path, until)
        gpu.measure(Part("slow", ("-c", "import time; time.sleep(60)"), 0.2), tmp_path, until)
    assert (tmp_path / "starts").read_text() == "x"
    assert (tmp_path / "quick.txt").read_text() == "1\n"
    assert not (tmp_path / "slow.txt").exists()
    gpu.measure(Part("late", ("-c", ""), 1000), tmp_path, until)  # half of its time is not left
    assert not (tmp_path / "late.txt").exists()


def test_steps_stand_beside_the_plain_form_of_their_recipe(tmp_path: Path) -> None:
    step = {"recipe": "dcc", "host_ms": 1.0, "images_per_s": 2.0}
    (tmp_path / "steps-dcc-plain.txt").write_text(json.dumps({**step, "form": "plain", "ms": 50.0}) + "\n")
    bf16 = {**step, "form": "bf16", "ms": 10.0, "kernels": 1200, "kernel_ms": 8.5, "peak_mib": 30}
    (tmp_path / "steps-dcc-bf16.txt").write_text(f"a warning\n{json.dumps(bf16)}\n")
    (tmp_path / "steps-cmb-bf16.txt").write_text("Traceback\nRuntimeError\n")
    rows = [line.split("|")[1:-1] for line in gpu.table(tmp_path).splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["dcc", "bf16", "10.0", "1.0", "8.5 (1,200)", "2.0", "30", "5.00"],
        ["dcc", "plain", "50.0", "1.0", "", "2.0", "", "1.00"],
    ]
