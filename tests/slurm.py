"""The demo grid through a real SLURM on this machine, against the same grid run locally: make slurm-test.

Installs Debian's packages where they are missing (as root), starts munged, slurmctld and slurmd on loopback
in a folder of their own, with four fake GPUs, and ends all that it has started. Of the runs through SLURM one
is cancelled in mid-training and another runs out of time; both must go on where they were saved. A third is
cancelled while it is evaluated, and must not be trained again. Both ways' tables must be equal byte for byte.
"""

import argparse
import ctypes
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from semiseg.base import parameters
from tests import project

GPUS = 4
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
TABLES = Path("results", "tables")
RUN = "runs/{recipe}/demo-1_20/0"
CANCELLED, LATE, TRAINED = "dcc", "cmb", "supervised"
PR_SET_CHILD_SUBREAPER = 36

SLURM_CONF = """\
ClusterName=semiseg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=200000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = "Name=gpu File={place}/gpu[0-{last}]\n"


def install() -> None:
    """Install what is missing of SLURM; raises SystemExit where that is not possible."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit("slurm-test needs Debian's slurm-wlm and munge (apt-get install slurm-wlm munge), and root")
    say("installing Debian's slurm-wlm and munge")
    apt = ["apt-get", "-qq", "-y", "--no-install-recommends"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*apt, "install", "slurm-wlm", "munge"], check=True, env=environment, stdout=subprocess.DEVNULL
    )


@contextmanager
def cluster(place: Path) -> Iterator[dict[str, str]]:
    """A SLURM of one node in ``place``; yields the variables by which its commands find it."""
    place.chmod(0o755)  # munged wants its socket within everybody's reach
    for name in ("state", "spool"):
        (place / name).mkdir()
    for gpu in range(GPUS):  # /dev/null under other names
        os.mknod(place / f"gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    key = place / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    controller, node = free_ports(2)
    (place / "slurm.conf").write_text(
        SLURM_CONF.format(host=host, place=place, controller=controller, node=node, gpus=GPUS)
    )
    (place / "gres.conf").write_text(GRES_CONF.format(place=place, last=GPUS - 1))
    # The executor drops SLURM_CONF before it calls srun.
    srun = place / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={place}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    environment = {
        "SLURM_CONF": str(place / "slurm.conf"),
        "PATH": f"{srun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    munged = ["munged", "--foreground", "--force", "--num-threads=2"]
    munged += [
        f"--{name}={place}/munge.{name.removesuffix('-file')}" for name in ("socket", "pid-file", "log-file")
    ]
    munged += [f"--key-file={key}", f"--seed-file={place}/munge.seed"]
    daemons = (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c", "-N", host])
    try:
        for command in daemons:
            with (place / f"{command[0]}.log").open("w") as log:
                subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT)
            if command is munged:
                wait_until((place / "munge.socket").exists, "munged listens", 30)
        wait_until(lambda: ask(environment, "sinfo", "-h", "-o", "%T") == "idle", "the node is idle", 60)
        say(f"{ask(environment, 'sinfo', '--version')}, {ask(environment, 'sinfo', '-h', '-o', '%G')}")
        yield environment
    except TimeoutError:
        for log in sorted(place.glob("*.log")):
            print(f"--- {log.name}, its end", *log.read_text().splitlines()[-15:], sep="\n", file=sys.stderr)
        raise


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of SLURM's says; nothing where it fails, as it may while the daemons start."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    return done.stdout.strip()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(holds: Callable[[], object], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def job_that_trains(place: Path, recipe: str, snakemake: "subprocess.Popen[str]") -> str:
    """The SLURM job that trains the demo's run of ``recipe``, once it is in mid-training."""
    history = place / RUN.format(recipe=recipe) / "history.csv"
    wait_until(lambda: history.exists() or snakemake.poll() is not None, f"{recipe} trains", 600)
    if job := job_of("train", recipe):
        return job
    raise RuntimeError(f"no process trains {recipe}; see {place / 'snakemake.log'}")


def job_that_evaluates(place: Path, recipe: str, snakemake: "subprocess.Popen[str]") -> str:
    """The SLURM job that evaluates the demo's run of ``recipe``, once it does."""
    jobs: list[str] = []

    def found() -> bool:
        jobs.append(job_of("evaluate", recipe))
        return bool(jobs[-1]) or snakemake.poll() is not None

    wait_until(found, f"{recipe} is evaluated", 600)
    if not jobs[-1]:
        raise RuntimeError(f"{recipe} was not seen to be evaluated; see {place / 'snakemake.log'}")
    return jobs[-1]


def job_of(stage: str, recipe: str) -> str:
    """The SLURM job in which a process runs the stage for ``recipe``; "" where none does."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[1:3] == [f"pipeline/{stage}.py", recipe]:
                return process.environ()["SLURM_JOB_ID"]
    return ""


def saved_after(place: Path, job: str) -> int:
    """The step after which the run of ``job`` says that it is saved, in SLURM's log, which outlives it."""
    (log,) = (place / ".snakemake" / "slurm_logs").glob(f"*/{job}.log")
    saved = re.compile(r"saved after step (\d+)")
    wait_until(lambda: saved.search(log.read_text()), f"job {job} says that it is saved", 180)
    return int(saved.findall(log.read_text())[0])


def sittings(place: Path, recipe: str) -> list[int]:
    """After which steps the sittings of a run began, as its TensorBoard events have it."""
    files = (place / RUN.format(recipe=recipe)).glob("events.*")
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return sorted(event.step for event in events if event.HasField("session_log"))


def run_demo(place: Path, environment: dict[str, str], *options: str) -> "subprocess.Popen[str]":
    log = (place / "snakemake.log").open("w")
    command = [sys.executable, "-m", "snakemake", "demo", *options]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
    )


def finish(process: "subprocess.Popen[str]", place: Path, began: float, what: str) -> None:
    if process.wait() != 0:
        sys.exit(f"{what}: {(place / 'snakemake.log').read_text()}")
    say(f"{what}: done in {time.monotonic() - began:.0f} s")


def through_slurm(place: Path, environment: dict[str, str]) -> None:
    """The demo, with a job cancelled, a job out of time, and one cancelled behind its training."""
    began = time.monotonic()
    # The profile as it is shipped; only looked after more often, as the demo's runs take seconds.
    quick = ["--seconds-between-status-checks", "3", "--slurm-init-seconds-before-status-checks", "3"]
    quick += ["--latency-wait", "10"]
    process = run_demo(place, environment, "--workflow-profile", "profiles/slurm", *quick)
    late = job_that_trains(place, LATE, process)
    ask(environment, "scontrol", "update", f"JobId={late}", "TimeLimit=3")  # SIGTERM comes two minutes before
    cancelled = job_that_trains(place, CANCELLED, process)
    ask(environment, "scancel", cancelled)
    ask(environment, "scancel", job_that_evaluates(place, TRAINED, process))
    steps = {CANCELLED: saved_after(place, cancelled), LATE: saved_after(place, late)}
    finish(process, place, began, "the demo through SLURM")
    for recipe, step in steps.items():
        if sittings(place, recipe) != [0, step]:
            sys.exit(f"{recipe}: saved after step {step}; its sittings began at {sittings(place, recipe)}")
        how = "cancelled" if recipe == CANCELLED else "out of time"
        say(f"{recipe}: {how}, saved after step {step} and resumed there")
    last = parameters.load(place / "params.yaml").protocols["demo"].steps
    if sittings(place, TRAINED) != [0, last]:
        sys.exit(f"{TRAINED}: cancelled in evaluation; its sittings began at {sittings(place, TRAINED)}")
    say(f"{TRAINED}: cancelled while it was evaluated, and not trained again")


def tables(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((place / TABLES).iterdir())}


def adopt_orphans() -> None:
    """Keep what SLURM's daemons start among this process's descendants, so that all of it can be ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def end_all() -> None:
    """End every descendant of this process; a daemon may start another as it is being ended."""
    while started := psutil.Process().children(recursive=True):
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(started, timeout=10)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)


def say(what: str) -> None:
    print(f"slurm-test: {what}", flush=True)


def run_both(place: Path) -> None:
    began = time.monotonic()
    (place / "cluster").mkdir()
    local, distant = (project.copy(place / name) for name in ("local", "slurm"))
    with cluster(place / "cluster") as environment:
        through_slurm(distant, project.environment(distant) | environment | {"SEMISEG_DEVICE": "cpu"})
    began = time.monotonic()
    finish(run_demo(local, project.environment(local), "--cores", "2"), local, began, "the demo here")
    if not tables(local) or tables(local) != tables(distant):
        sys.exit(f"the tables differ: diff -r {local / TABLES} {distant / TABLES}")
    say(f"equal byte for byte: {', '.join(tables(local))}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    install()
    adopt_orphans()
    place = Path(tempfile.mkdtemp(prefix="semiseg-slurm-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        run_both(place)
    finally:
        end_all()
    shutil.rmtree(place)  # what has failed is kept to be looked at


if __name__ == "__main__":
    main()
