"""Processes that end with their parent."""

import ctypes
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(number: int) -> None:
    """Ask Linux to send the signal ``number`` to this process when its parent ends in any way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
