"""Tables of records that were made up, against figures worked out by hand."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from semiseg.base.errors import UserError
from semiseg.base.parameters import Evaluation, Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import foot, tables
from semiseg.report.collect import collect, last
from tests.report.conftest import PARAMS, edited

Finish = Callable[..., Record]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first Markdown table in ``text``, without its rule."""
    block = text[text.index("| recipe") :].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return [lines[0], *lines[2:]]


def test_cells_are_mean_std_count_and_the_paired_gain(params: Params, finish: Finish) -> None:
    for seed, (supervised, cmb) in enumerate([(0.40, 0.44), (0.50, 0.56), (0.60, 0.68)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb, headline="teacher")
    finish("dcc", "small-1_8", 2, 0.55)
    head, supervised_row, cmb_row, dcc_row = rows(tables.markdown(collect(params, "main")))
    assert head == ["recipe", "1/8 (20)", "gain", "full", "gain"]
    assert supervised_row == ["supervised", "50.0 ± 10.0 (3)", "–", "", ""]
    # 44, 56, 68: mean 56, deviations -12, 0, 12: sqrt(288 / 2) = 12; gains 4, 6, 8: mean 6, deviation 2,
    # and t(0.975, 2) = 4.303: 4.303 * 2 / sqrt(3) = 4.97
    assert cmb_row == ["cmb", "56.0 ± 12.0 (3)", "+6.0 [+1.0, +11.0]", "", ""]
    assert dcc_row == ["dcc", "55.0 (1)", "-5.0", "", ""]  # against seed 2 alone, not against the mean


def test_gain_says_its_seeds_where_the_baseline_lacks_some(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 1, 0.50)
    for seed in (0, 1):
        finish("cmb", "small-1_8", seed, 0.60)
    row = rows(tables.markdown(collect(params, "main")))[2]
    assert row[1:3] == ["60.0 ± 0.0 (2)", "+10.0 (1)"]


def test_gain_is_empty_without_a_baseline(params: Params, finish: Finish) -> None:
    finish("cmb", "small-1_8", 0, 0.60)
    assert rows(tables.markdown(collect(params, "main")))[2][1:3] == ["60.0 (1)", ""]


def test_csv_holds_the_same_figures_as_fractions(params: Params, finish: Finish) -> None:
    for seed, (supervised, cmb) in enumerate([(0.40, 0.44), (0.50, 0.56)]):
        finish("supervised", "small-full", seed, supervised)
        finish("cmb", "small-full", seed, cmb, best=cmb + 0.1)
    frame = pd.read_csv(io.StringIO(tables.csv(collect(params, "main")))).set_index(["recipe", "split"])
    assert len(frame) == 6
    row = frame.loc[("cmb", "small-full")]
    assert row["miou_mean"] == pytest.approx(0.5)
    assert row["miou_std"] == pytest.approx(0.084853, abs=1e-6)
    assert row["gain_mean"] == pytest.approx(0.05)
    assert row["gain_std"] == pytest.approx(0.014142, abs=1e-6)
    assert row["best_miou_mean"] == pytest.approx(0.6)
    assert (row["seeds"], row["seed_list"], row["ratio"]) == (2, "0 1", "1")
    # gains 4 and 6: t(0.975, 1) = 12.706, of which one deviation of sqrt(2) over sqrt(2)
    assert row[["gain_low", "gain_high"]].tolist() == pytest.approx(
        [0.05 - 0.12706, 0.05 + 0.12706], abs=1e-5
    )
    assert row["gain_smallest"] == pytest.approx(0.12706, abs=1e-5)
    assert (row["labelled_sets"], row["gain_labelled_sets"], row["share"]) == (2, 2, "full")
    assert row[["published", "published_best"]].isna().all()
    empty = frame.loc[("dcc", "small-1_8")]
    assert empty["seeds"] == 0
    assert empty[["miou_mean", "miou_std", "gain_mean", "best_miou_mean", "labelled"]].isna().all()


def test_nothing_run_still_builds_and_names_the_command(params: Params) -> None:
    text = tables.markdown(collect(params, "main"))
    assert [row[1:] for row in rows(text)[1:]] == [[""] * 4] * 3
    assert "18 runs" in text
    assert "`snakemake main --cores 8 --resources gpu=4`" in text
    assert "Revision" not in text
    assert "snakemake main" in tables.terminal(collect(params, "main"))
    assert all(path.stat().st_size for path in tables.write(collect(params, "main")))


def test_missing_runs_are_named_cell_by_cell(params: Params, finish: Finish) -> None:
    for recipe in ("supervised", "cmb", "dcc"):
        for split in ("small-1_8", "small-full"):
            for seed in (0, 1, 2):
                if (recipe, split) != ("dcc", "small-full") or seed == 1:
                    finish(recipe, split, seed, 0.5)
    text = tables.markdown(collect(params, "main"))
    assert "2 runs: dcc on small-full (seeds 0, 2). Run `snakemake main " in text
    finish("dcc", "small-full", 0, 0.5)
    finish("dcc", "small-full", 2, 0.5)
    assert "Not run yet" not in tables.markdown(collect(params, "main"))


def test_rows_are_the_grids_recipes_on_its_own_splits_and_seeds(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("supervised", "small-1_8", 2, 0.90)  # a seed that the ablation does not have
    finish("cmb-no_attention", "small-1_8", 0, 0.45)
    results = collect(params, "ablation")
    head, *body = rows(tables.markdown(results))
    assert head == ["recipe", "1/8 (20)", "gain"]
    assert [row[0] for row in body] == ["supervised", "cmb", "dcc", "cmb-no_attention"]
    assert body[0][1] == "40.0 (1)"
    assert body[3][1:] == ["45.0 (1)", "+5.0"]
    (missing,) = foot.missing(results)
    assert "cmb-no_attention on small-1_8 (seed 1). Run `snakemake ablation " in missing
    assert "supervised on small-1_8 (seed 1)" in missing


def test_the_page_says_what_the_numbers_rest_on(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb", "small-1_8", 0, 0.50, best=0.57, headline="teacher", revision="f" * 40)
    finish("cmb", "small-1_8", 1, 0.50, device="A GPU", finished="2026-03-02T00:10:00Z")
    text = tables.markdown(collect(params, "main"))
    first, second = text.split("## Best on validation")
    assert "test list at the **last step**" in first
    assert "deeplabv3plus on resnet18 (random weights" in first
    assert "1,500 steps, batch 4 labelled + 6 unlabelled" in first
    assert f"`0123456789abcdef0123456789abcdef01234567` (2 runs); `{'f' * 40}` (1 run)" in first
    assert "A GPU (1 run); One CPU, 2 thread(s) (2 runs)" in first
    assert "2026-03-01 (2 runs); 2026-03-02 (1 run)" in first
    assert "10:00" not in text
    assert "scored on whole images at their own size" in first
    assert "the student of supervised" in first
    assert "the teacher of cmb" in first
    assert "flatters" in second
    assert rows(second)[2][1] == "53.5 ± 4.9 (2)"  # 57 and 50: 7 / sqrt(2)


def test_the_foot_names_the_recipes_that_change_the_network_or_the_scoring(params: Params) -> None:
    own = replace(params.recipes["dcc"], network={"head": "pspnet"}, evaluation={"flip": True})
    changed = replace(params, recipes={**params.recipes, "dcc": own})
    said = foot.setting(collect(changed, "main"))
    assert [each for each in said if "`dcc`" in each] == [
        "`dcc` changes the protocol's head: pspnet, flip: true."
    ]
    assert not any("`cmb`" in each for each in said)


def test_the_foot_tells_how_images_are_scored() -> None:
    whole = Evaluation(long_side=None, window=None, stride=None, flip=False, recalibrate=None)
    windows = replace(whole, long_side=1024, window=801, stride=0.5, flip=True)
    assert "mirror" not in foot.scoring(whole)
    for part in ("801", "0.5", "1024", "mirror"):
        assert part in foot.scoring(windows)


def test_an_unknown_grid_is_refused(params: Params) -> None:
    with pytest.raises(UserError, match="no 'nowhere'; there are main, ablation"):
        collect(params, "nowhere")


def test_same_records_same_bytes_in_whatever_order_they_were_written(params: Params, finish: Finish) -> None:
    figures = {
        ("supervised", "small-1_8", 0): 0.41,
        ("cmb", "small-1_8", 0): 0.52,
        ("cmb", "small-1_8", 1): 0.5,
    }
    for key, miou in figures.items():
        finish(*key, miou)
    before = {path: path.read_bytes() for path in tables.write(collect(params, "main"))}
    for key in figures:
        Run(*key).metrics.unlink()
    for key, miou in reversed(figures.items()):
        finish(*key, miou)
    after = {path: path.read_bytes() for path in tables.write(collect(params, "main"))}
    assert before == after
    assert {path.suffix for path in before} == {".csv", ".md", ".tex"}


def test_latex_is_booktabs_with_its_signs_escaped(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5)
    finish("supervised", "small-1_8", 1, 0.6)
    finish("cmb-no_attention", "small-1_8", 0, 0.4)
    text = tables.latex("100 %", tables.text_table(collect(params, "ablation"), last))
    assert text.startswith("% 100 %\n\\begin{tabular}{lrr}\n\\toprule\n")
    assert r"cmb-no\_attention & 40.0 (1) & $-$10.0 \\" in text
    assert r"supervised & 55.0 $\pm$ 7.1 (2) & -- \\" in text
    assert text.isascii()


def test_terminal_table_is_aligned(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5)
    lines = tables.terminal(collect(params, "ablation")).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("recipe"))
    assert {len(line) for line in lines[start : start + 3]} == {len(lines[start])}
    assert "50.0 (1)" in lines[start + 2]


def test_only_what_measures_steps_imports_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, semiseg.report as report\n"
        "for each in pkgutil.iter_modules(report.__path__):\n"
        "    if each.name not in ('throughput', 'memory'):\n"  # they take steps
        "        importlib.import_module('semiseg.report.' + each.name)\n"
        "import pipeline.tables, pipeline.report\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_seeds_that_share_a_labelled_set_count_as_one(params: Params, finish: Finish) -> None:
    shared = {"labelled_set_sha256": "5" * 64}
    for seed, (supervised, cmb) in enumerate([(0.40, 0.42), (0.50, 0.56), (0.60, 0.68)]):
        origin = shared if seed < 2 else {}
        finish("supervised", "small-1_8", seed, supervised, **origin)
        finish("cmb", "small-1_8", seed, cmb, **origin)
    text = tables.markdown(collect(params, "main"))
    # supervised (40 + 50) / 2 and 60: mean 52.5, deviation 15 / sqrt(2); gains (2 + 6) / 2 = 4 and 8
    assert rows(text)[1][1] == "52.5 ± 10.6 (2)"
    assert rows(text)[2][1:3] == ["58.5 ± 13.4 (2)", "+6.0 [-19.4, +31.4]"]
    (warning,) = [line for line in text.splitlines() if "Warning" in line]
    assert "seeds 0 and 1 of 1/8 (20)" in warning
    assert "seeds 0 and 1 of 1/8 (20)" in tables.terminal(collect(params, "main"))
    frame = pd.read_csv(io.StringIO(tables.csv(collect(params, "main")))).set_index(["recipe", "split"])
    assert frame.loc["cmb", "small-1_8"][["seeds", "labelled_sets"]].tolist() == [3, 2]


def test_with_all_images_labelled_each_seed_counts(params: Params, finish: Finish) -> None:
    for seed in (0, 1):
        finish("supervised", "small-full", seed, 0.5 + 0.1 * seed, labelled_set_sha256="5" * 64)
    text = tables.markdown(collect(params, "main"))
    assert rows(text)[1][3] == "55.0 ± 7.1 (2)"
    assert "Warning" not in text


def test_the_foot_says_which_interval_and_the_smallest_difference(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb", "small-1_8", 0, 0.50)
    assert "Intervals" not in tables.markdown(collect(params, "main"))
    for seed, (supervised, cmb) in enumerate([(0.40, 0.44), (0.50, 0.56), (0.60, 0.68)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb)
    text = tables.markdown(collect(params, "main"))
    assert "Intervals: paired t" in text
    assert "1/8 (20): 5.0." in text  # 4.303 * 2 / sqrt(3)
    many = edited(PARAMS.replace("seeds: [0, 1, 2]", f"seeds: {list(range(10))}"))
    for seed in range(10):
        finish("supervised", "small-1_8", seed, 0.5)
        finish("cmb", "small-1_8", seed, 0.5 + 0.01 * seed)
    text = tables.markdown(collect(many, "main"))
    assert "Intervals: percentile bootstrap" in text
    assert "**" not in text[text.index("| recipe") : text.index("- Columns")]


def test_further_figures_stand_in_the_csv(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5, figures={"boundary_iou": 0.2, "calibration_error": None})
    finish("supervised", "small-1_8", 1, 0.5, figures={"boundary_iou": 0.3, "calibration_error": 0.1})
    finish("cmb", "small-1_8", 0, 0.5)  # of before they were recorded
    frame = pd.read_csv(io.StringIO(tables.csv(collect(params, "main")))).set_index(["recipe", "split"])
    columns = ["boundary_iou_mean", "calibration_error_mean"]
    assert frame.loc["supervised", "small-1_8"][columns].tolist() == pytest.approx([0.25, 0.1])
    assert frame.loc["cmb", "small-1_8"][columns].isna().all()


def test_a_name_with_dots_has_files_of_its_own(params: Params) -> None:
    text = PARAMS.replace("  ablation:\n", "  main.v2:\n").replace("Without attention", "Another")
    dotted = edited(text)
    written = [path for name in dotted.grids for path in tables.write(collect(dotted, name))]
    assert len({path.name for path in written}) == 6
    assert Path("results/tables/main.md").read_text().startswith("# Shapes")
    assert Path("results/tables/main.v2.md").read_text().startswith("# Another")


def test_what_a_network_starts_from_is_part_of_its_columns_name(starts: Params) -> None:
    """A pretraining from other weights is another claim, so its own start is told as well."""
    results = collect(starts, "main")
    head = tables.text_table(results, last).head
    assert [each for each in head if each not in ("recipe", "gain")] == [
        "1/8 from random weights",
        "1/8 from simclr after random weights",
        "1/8 from moco after imagenet",
    ]
    notes = "\n".join(foot.notes(results))
    assert "pretrained by simclr on shapes" in notes
    assert "pretrained by moco on shapes" in notes
