"""A process that ends with the one that started it."""

import ctypes
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(number: int) -> None:
    """Be sent the signal ``number`` when the parent ends, however it does; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
