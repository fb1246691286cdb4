"""Tables of records that were made up, against figures worked out by hand."""

import io
import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import tables
from semiseg.report.collect import collect, interval, last, summarise

Finish = Callable[..., Record]


def rows(text: str) -> list[list[str]]:
    """The cells of the first Markdown table in ``text``, without its rule."""
    block = text[text.index("| recipe") :].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return [lines[0], *lines[2:]]


def test_summary_of_three_figures_uses_n_minus_one() -> None:
    summary = summarise([0.40, 0.50, 0.60])
    assert summary is not None
    assert (summary.mean, summary.std, summary.count) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    assert summarise([]) is None
    single = summarise([0.3])
    assert single is not None
    assert single.std is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_summary_agrees_with_pandas(values: list[float]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert summary.mean == pytest.approx(pd.Series(values).mean(), abs=1e-12)
    assert summary.std == pytest.approx(pd.Series(values).std(), abs=1e-7)


def test_cells_are_mean_std_count_and_the_paired_gain(params: Params, finish: Finish) -> None:
    for seed, (supervised, cmb) in enumerate([(0.40, 0.44), (0.50, 0.56), (0.60, 0.68)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb, headline="teacher")
    finish("dcc", "small-1_8", 2, 0.55)
    head, supervised_row, cmb_row, dcc_row = rows(tables.markdown(collect(params, "main")))
    assert head == ["recipe", "1/8 (20)", "gain", "full", "gain"]
    assert supervised_row == ["supervised", "50.0 ± 10.0 (3)", "–", "", ""]
    # 44, 56, 68: mean 56, deviations -12, 0, 12: sqrt(288 / 2) = 12; gains 4, 6, 8: of the 27
    # resamples one is all 4 and one all 8, 3.7 % each, so 95 % runs from end to end
    assert cmb_row == ["cmb", "56.0 ± 12.0 (3)", "+6.0 [+4.0, +8.0]", "", ""]
    assert dcc_row == ["dcc", "55.0 (1)", "-5.0", "", ""]  # against seed 2 alone, not against the mean


def test_gain_says_its_seeds_where_the_baseline_lacks_some(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 1, 0.50)
    for seed in (0, 1):
        finish("cmb", "small-1_8", seed, 0.60)
    row = rows(tables.markdown(collect(params, "main")))[2]
    assert row[1:3] == ["60.0 ± 0.0 (2)", "+10.0 (1)"]


def test_interval_agrees_with_every_resample_counted() -> None:
    values = [0.01, 0.02, 0.04, 0.09]
    means = np.array([np.mean(resample) for resample in itertools.product(values, repeat=4)])
    found = interval(values)
    assert found == interval(values)
    assert found is not None
    # of the 256 resamples' means: 2.5 % lie below the one, above the other, but for the noise of drawing
    for end, below in zip(found, (0.025, 0.975), strict=True):
        assert np.mean(means < end - 1e-9) <= below + 0.01
        assert np.mean(means <= end + 1e-9) >= below - 0.01
    assert interval([0.1, 0.2]) is None
    assert interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1))


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
    assert row[["gain_low", "gain_high", "published"]].isna().all()  # two seeds, nothing in print
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
    (missing,) = tables.missing(results)
    assert "cmb-no_attention on small-1_8 (seed 1). Run `snakemake ablation " in missing
    assert "supervised on small-1_8 (seed 1)" in missing


def test_the_page_says_what_the_numbers_rest_on(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb", "small-1_8", 0, 0.50, best=0.57, headline="teacher", revision="f" * 40)
    finish("cmb", "small-1_8", 1, 0.50, device="A GPU", finished="2026-03-02T00:10:00Z")
    text = tables.markdown(collect(params, "main"))
    first, second = text.split("## Best on validation")
    assert "test list at the **last step**" in first
    assert "deeplabv3plus on resnet18 (weights: none" in first
    assert "1,500 steps, batch 4 labelled + 6 unlabelled" in first
    assert f"`0123456789abcdef0123456789abcdef01234567` (2 runs); `{'f' * 40}` (1 run)" in first
    assert "A GPU (1 run); One CPU, 2 thread(s) (2 runs)" in first
    assert "2026-03-01 (2 runs); 2026-03-02 (1 run)" in first
    assert "10:00" not in text
    assert "the student of supervised" in first
    assert "the teacher of cmb" in first
    assert "flatters" in second
    assert rows(second)[2][1] == "53.5 ± 4.9 (2)"  # 57 and 50: 7 / sqrt(2)


def test_a_record_of_another_configuration_is_refused(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb", "small-1_8", 1, 0.50, config_sha256="0" * 64)
    with pytest.raises(UserError, match=r"cmb/small-1_8/1.*restore params.yaml.*snakemake main") as caught:
        collect(params, "main")
    assert "\n" not in str(caught.value)


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
    text = tables.latex(tables.text_table(collect(params, "ablation"), last))
    assert r"\toprule" in text
    assert r"cmb-no\_attention & 40.0 (1) & $-$10.0 \\" in text
    assert r"supervised & 55.0 $\pm$ 7.1 (2) & -- \\" in text
    assert text.isascii()


def test_terminal_table_is_aligned(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5)
    lines = tables.terminal(collect(params, "ablation")).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("recipe"))
    assert {len(line) for line in lines[start : start + 3]} == {len(lines[start])}
    assert "50.0 (1)" in lines[start + 2]


def test_nothing_in_the_report_imports_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, semiseg.report as report\n"
        "for each in pkgutil.iter_modules(report.__path__):\n"
        "    if each.name != 'throughput':\n"  # it trains
        "        importlib.import_module('semiseg.report.' + each.name)\n"
        "import pipeline.tables, pipeline.report\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
