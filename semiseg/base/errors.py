"""What went wrong, in one line that a person can act on."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: the next start may well go on
EXIT_INTERRUPTED = 130  # what a shell says of a process that ctrl-C ended
INTERRUPTED = "interrupted; give the same command again to go on"
# The disk is full, or does not let itself be written to.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """Bad input, or a state of the machine that the user must mend.

    The message is one line: what is wrong, where (the key or the file), what to do.
    """

    exit_status = EXIT_BAD_INPUT


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit status 2 (or the error's own).

    Everything else is a defect of this project and keeps its traceback.
    """
    threading.excepthook = _leave_to_main_thread
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except UserError as error:
        _end(str(error), error.exit_status)
    except KeyboardInterrupt:
        _end(INTERRUPTED, EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename or "the working folder"
        _end(
            f"{place}: {error.strerror}; free space or change permissions, then give the same command again",
            EXIT_BAD_INPUT,
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A KeyboardInterrupt; while a module is loaded the end at once, for some (pandas's) swallow it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _say(INTERRUPTED)
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave_to_main_thread(arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread prints a full disk's traceback; the main thread is told as well."""
    error = arguments.exc_value
    if not (isinstance(error, OSError) and error.errno in DISK):
        threading.__excepthook__(arguments)


def _end(said: str, status: int) -> None:
    if status == EXIT_TRY_AGAIN:
        # Python gives its handlers up while it ends: another SIGTERM would then take the status's place.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _say(said)
    sys.exit(status)


def _say(error: str) -> None:
    try:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except OSError:  # whoever kept the log has gone, or its disk is full: the status must outlive that
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
