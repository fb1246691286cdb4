"""Start a stage under torchrun: one process for each GPU, which begin and end together."""

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    get_error_handler,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from semiseg.base.errors import EXIT_TRY_AGAIN, UserError
from semiseg.base.processes import end_with_parent

PATIENCE = 5.0  # seconds


class Ended(UserError):
    """The processes of a run ended before their work was done."""

    def __init__(self, line: str, exit_status: int) -> None:
        super().__init__(line)
        self.exit_status = exit_status


def start(title: str, processes: int) -> None:
    """Run this command in ``processes`` processes on this machine, and wait for them.

    If one of them dies, the others end too. SIGTERM reaches all of them, and they save at the same step.
    Raises Ended with one line and the status of the process that ended first.
    """
    signal.signal(signal.SIGTERM, _end_once)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # repeated below
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides a warning if every head takes a gradient
    with tempfile.TemporaryDirectory() as folder:
        together = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(together, sys.executable)("-u", *sys.argv)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            _tell(title, processes, failure)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            line = f"{title}: stopped by {error.sigval.name}; start it again to go on from its checkpoint"
            raise Ended(line, EXIT_TRY_AGAIN) from None


def _end_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as torchrun does, but once: another would end the processes before they save."""
    signal.signal(number, signal.SIG_IGN)
    raise SignalException("SIGTERM", signal.SIGTERM)


def _tell(title: str, processes: int, failure: ProcessFailure) -> None:
    """Report for the first process that ended why it did."""
    if failure.exitcode < 0:
        raise Ended(
            f"{title}: process {failure.local_rank + 1} of {processes} was killed ({failure.signal_name()}); "
            "start the run again to go on from its checkpoint",
            EXIT_TRY_AGAIN,
        ) from None
    if isinstance(failure.message, dict):
        _, line = failure.message["message"].split(": ", 1)  # the exception's type and text
        raise Ended(line, failure.exitcode) from None
    sys.exit(failure.exitcode)  # it printed its own message


def started() -> bool:
    """Return whether torchrun started this process."""
    return distributed.is_torchelastic_launched()


@contextmanager
def one_of_several() -> Iterator[None]:
    """End this process with its parent, and leave the message of its error to the parent."""
    end_with_parent(signal.SIGKILL)
    try:
        yield
    except RuntimeError:
        # If another process ended first, torchrun's SIGTERM ends this one here.
        time.sleep(PATIENCE)
        raise
    except UserError as error:
        get_error_handler().record_exception(error)
        sys.exit(error.exit_status)
