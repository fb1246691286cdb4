"""Read history.csv, the whole one of a training or the short one beside a record."""

from pathlib import Path

import pandas as pd

from semiseg.base.errors import UserError

SHORT = "evaluate the run again"  # remedy for a short history


def read(path: Path, remedy: str, *columns: str) -> pd.DataFrame:
    """Return the rows of ``path``, in the order of their steps.

    Raises UserError, with ``remedy``, if it holds anything but numbers, or lacks step or one of ``columns``.
    """
    try:
        history = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); {remedy}") from error
    numbers = history.select_dtypes("number")
    if not {"step", *columns} <= set(numbers) or len(numbers.columns) < len(history.columns):
        raise UserError(f"{path}: not the history of a training; {remedy}")
    return history
