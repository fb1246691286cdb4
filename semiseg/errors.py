"""What went wrong, in one line that a person can act on."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_BAD_INPUT = 2


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
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        place = error.filename or "the working folder"
        print(
            f"error: {place}: {error.strerror}; free space or change permissions, "
            "then give the same command again",
            file=sys.stderr,
        )
        sys.exit(EXIT_BAD_INPUT)
