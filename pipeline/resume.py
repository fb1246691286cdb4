"""Run a stage, and again while it ends with 75: python pipeline/resume.py pipeline/train.py <arguments>.

Both engines put this before training and evaluation, because neither looks at a status (docs/reliability.md).
"""

import argparse
import signal
import subprocess
import sys
import time
from functools import partial
from types import FrameType

from semiseg.base.errors import EXIT_TRY_AGAIN, one_line_errors
from semiseg.base.processes import end_with_parent

STARTS = 5  # the most


def resumed(command: list[str]) -> int:
    """Return the status with which ``command`` finally ends, as a shell gives it.

    SIGTERM is passed on to it; a ctrl-C reaches it anyway. Once told to stop, never restart.
    """
    told: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)
        hand_on()

    def hand_on() -> None:
        if signal.SIGTERM in told:
            for process in running:
                process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    for start in range(1, STARTS + 1):
        process = subprocess.Popen(command, preexec_fn=partial(end_with_parent, signal.SIGTERM))
        running[:] = [process]
        hand_on()  # a signal that came in between
        while process.poll() is None:
            time.sleep(0.1)  # not wait(), where a signal that came just before is answered only at the end
        status = process.returncode
        if status != EXIT_TRY_AGAIN or told or start == STARTS:
            break
        said = f"{' '.join(command[1:])}: ended with {status}; start {start + 1} of at most {STARTS}"
        print(said, file=sys.stderr, flush=True)
    return status if status >= 0 else 128 - status


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", help="its script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the stage's own")
    arguments = parser.parse_args()
    sys.exit(resumed([sys.executable, arguments.stage, *arguments.arguments]))


if __name__ == "__main__":
    with one_line_errors():
        main()
