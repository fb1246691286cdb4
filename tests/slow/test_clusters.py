"""The profiles for clusters: their options exist, and a pod asks for what a run needs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import get_argument_parser

from tests import kubernetes, project
from tests.project import ROOT, edit, snakemake_commands, succeed
from tests.slow.engines import with_few_grids

PROFILES = sorted(folder.name for folder in (ROOT / "profiles").iterdir())
RUN = "supervised/demo-1_20/0"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_option_of_a_profile_is_one_of_snakemake_s_or_the_executor_s(profile: str) -> None:
    known = set(re.findall(r"--([a-z][\w-]+)", get_argument_parser().format_help()))
    assert {"cores", "slurm-no-account", "kubernetes-namespace"} <= known
    options = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
    assert options.keys() <= known
    for by_rule in ("set-resources", "set-threads"):
        assert options.get(by_rule, {}).keys() <= {"pretrain", "train", "evaluate"}


def test_a_dry_run_through_kubernetes_plans_what_one_here_does(tmp_path: Path) -> None:
    place = project.copy(tmp_path)
    dry = ("snakemake", "demo", "--dry-run", "--printshellcmds")
    here = snakemake_commands(succeed(place, *dry))
    through = snakemake_commands(succeed(place, *dry, "--workflow-profile", "profiles/kubernetes"))
    assert here
    assert sorted(through) == sorted(here)


def test_a_run_is_a_pod_which_is_submitted_again_when_it_was_removed(tmp_path: Path) -> None:
    assert shutil.which("rsync"), "python -m tests.kubernetes installs it"
    place = with_few_grids(tmp_path / "semiseg", ["supervised"])
    edit(place / "profiles" / "kubernetes" / "config.yaml", "semiseg:/semiseg", f"semiseg:{place}")
    subprocess.run(
        ["sh", "profiles/kubernetes/link.sh"], cwd=place, env=project.environment(place), check=True
    )
    half_done = place / "runs" / RUN / "history.csv"  # a lost pod leaves it behind
    half_done.parent.mkdir(parents=True)
    half_done.touch()
    with kubernetes.serve(tmp_path, removed=1) as (cluster, kubeconfig):
        through = ["--workflow-profile", "profiles/kubernetes", "--seconds-between-status-checks", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "demo", *through],
            cwd=place,
            env=project.environment(place) | {"KUBECONFIG": str(kubeconfig)},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        first, second = cluster.jobs.values()
        asked(first, place)
        asked(second, place)
        assert list(cluster.pods) == [second["metadata"]["name"]]
    for trained in (f"runs/{RUN}/model.pt", f"results/runs/{RUN}/metrics.json", "results/tables/demo.csv"):
        assert (place / trained).read_text() == (place / "kubernetes" / trained).read_text()
    # The pods' work is in the project, as if it had been done there.
    assert "Nothing to be done" in succeed(place, "snakemake", "demo", "--dry-run")


def asked(job: dict[str, Any], place: Path) -> None:
    """Assert that the pod of ``job`` asks for what a run needs, by the rules of Kubernetes' documentation."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    resources = container["resources"]
    assert container["image"] == "semiseg"
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert resources["limits"]["memory"] == "24000M"
    assert resources["limits"]["cpu"] == "6000m"
    # A limit grants the GPU, and the request must equal it.
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert len(mounts) == len(container["volumeMounts"])  # two mounts at one path are refused
    assert mounts[str(place)] == "semiseg"
    assert mounts["/dev/shm"] == "semiseg-shm"
    claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"][1:]}
    assert claims == {"semiseg": "semiseg", "semiseg-shm": "semiseg-shm"}
    assert pod["restartPolicy"] == "Never"
