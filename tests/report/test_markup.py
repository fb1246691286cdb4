"""Any text survives Markdown, HTML, LaTeX and DVC."""

import html
import json
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dvc_stages
from semiseg.base.parameters import Params
from semiseg.report import tables
from semiseg.report.collect import collect, last
from semiseg.report.markup import escape, one_line, to_html, to_plain
from tests.report.conftest import PARAMS, edited

TITLE = """<img src=x onerror="alert(1)"> $x_$ & 5% {a} **b** `c` [d](e) 'f' | g_h \\ ~~i~~ ${j} # é"""


@given(st.text())
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    assert to_plain(escape(text)) == one_line(text)
    assert to_html(escape(text)) == html.escape(one_line(text))


def test_marks_of_a_note_become_tags() -> None:
    note = "a **b `c < d`** `**e**` \\*f\\* g_h"
    assert to_html(note) == "a <strong>b <code>c &lt; d</code></strong> <code>**e**</code> *f* g_h"
    assert to_plain(note) == "a b c < d **e** *f* g_h"


@pytest.fixture
def titled(params: Params) -> Params:
    return edited(PARAMS.replace("title: Shapes, all of them", f"title: {json.dumps(TITLE)}"))


def test_a_title_comes_out_right_in_markdown_and_latex(titled: Params) -> None:
    results = collect(titled, "main")
    heading = tables.markdown(results).splitlines()[0]
    assert heading.startswith("# ")
    assert to_plain(heading[2:]) == TITLE
    for sign in ("<", "**", "`", "$", "](", "|", "~~"):
        assert f"\\{sign[0]}" in heading
    assert tables.terminal(results).splitlines()[0] == TITLE
    first, second, *_ = tables.latex(TITLE + "\n\\input{x}", tables.text_table(results, last)).splitlines()
    assert first.startswith("% <img")
    assert second.startswith("\\begin{tabular}")


def test_a_row_with_markup_in_its_name_stays_one_row() -> None:
    table = tables.TextTable(("row", "a|b"), (("x | <b>y</b> & {z}_1", "5.0"),))
    _, _, row = tables.drawn_as("pipe", table).splitlines()
    assert row.count("|") == 4  # three of the table, one escaped
    assert "\\|" in row
    text = tables.latex("", table)
    assert r"x \textbar{} \textless{}b\textgreater{}y\textless{}/b\textgreater{} \& \{z\}\_1 & 5.0" in text


def test_dvc_shows_a_title_as_it_is(titled: Params) -> None:
    text = dvc_stages.report(titled, "main", ".")
    Path("dvc.yaml").write_text(f"stages:{text}")
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
        subprocess.run(command, check=True)
    with Repo() as repo:
        (stage,) = repo.index.stages
    assert stage.desc == f"{TITLE}: table and figures"
