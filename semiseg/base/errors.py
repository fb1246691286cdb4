"""Errors as one line that a person can act on, and the exit statuses of the stages."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: started again, the stage may go on
EXIT_INTERRUPTED = 130  # a shell's status of a process that ctrl-C ended
INTERRUPTED = "interrupted; give the same command again to go on"
# The disk is full, cannot be reached or written to, or something else lies where a file or a folder should.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
TAKEN = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP)
PLACE = (*FULL, *REFUSED, *TAKEN)


class UserError(Exception):
    """Bad input, or a state of the machine that the user has to mend.

    The message is one line: what is wrong, where (the key or the file), and what to do. Characters that
    cannot be printed, such as a line feed in a file's name, are shown as escapes.
    """

    exit_status = EXIT_BAD_INPUT

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(each if each.isprintable() else ascii(each)[1:-1] for each in message))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line on stderr and exit status 2 (or the error's own).

    Any other exception is a defect of this project and keeps its traceback.
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
        if error.errno not in PLACE:
            raise
        refused = UserError(
            f"{error.filename or 'the working folder'}: {error.strerror}; free space, change permissions or "
            "clear the place, then give the same command again"
        )
        _end(str(refused), refused.exit_status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; while a module is loading exit at once, for pandas would swallow it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _say(INTERRUPTED)
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave_to_main_thread(arguments: threading.ExceptHookArgs) -> None:
    """Hide a full disk's traceback from TensorBoard's writing thread; the main thread meets the error too."""
    error = arguments.exc_value
    if not (isinstance(error, OSError) and error.errno in PLACE):
        threading.__excepthook__(arguments)


def _end(said: str, status: int) -> None:
    if status == EXIT_TRY_AGAIN:
        # Python drops its handlers while it exits; another SIGTERM would then replace the status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _say(said)
    sys.exit(status)


def _say(error: str) -> None:
    try:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except OSError:  # the reader of the log is gone, or its disk is full; the status must survive
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
