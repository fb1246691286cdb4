"""Linters, formatters and the type checker, as tests so that the others need not wait for them."""

import pytest

from tests.project import ROOT, succeed


@pytest.mark.parametrize(
    "command",
    ["mypy", "ruff check .", "ruff format --check .", "snakemake --lint", "snakefmt --check Snakefile"],
)
def test_nothing_is_found_by(command: str) -> None:
    succeed(ROOT, *command.split())
