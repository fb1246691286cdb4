"""A DVC remote carries a grid from one clone to another, where nothing is run again."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.project import dvc_commands, git, succeed
from tests.slow.engines import with_few_grids

GRID = "camvid-small"  # git keeps its results, unlike the demo's
TARGET = f"pipeline/dvc.yaml:{GRID}"

SFTP_SERVER = """
import asyncio, sys
import asyncssh

async def serve(key: str) -> None:
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], authorized_client_keys=f"{key}.pub", sftp_factory=True
    )
    print(server.get_port(), flush=True)
    await server.wait_closed()

asyncio.run(serve(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in git with a finished grid, each stage a stub."""
    place = with_few_grids(tmp_path_factory.mktemp("project") / "here", ["supervised", "cmb"])
    succeed(place, "dvc", "repro", TARGET)
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "camvid-small: records, tables, dvc.lock")
    return place


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an SSH server on loopback, and a key that it lets in."""
    key = tmp_path / "key"
    private = asyncssh.generate_private_key("ssh-ed25519")
    private.write_private_key(key)
    private.write_public_key(key.with_suffix(".pub"))
    process = subprocess.Popen(
        [sys.executable, "-c", SFTP_SERVER, str(key)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield f"ssh://someone@127.0.0.1:{process.stdout.readline().strip()}", key
    process.kill()
    process.communicate()


def carried(here: Path, there: Path, **remote: str) -> None:
    """Push a finished grid; clone the project, pull, and find nothing left to run."""
    git(here.parent, "clone", "--quiet", str(here), str(there))
    settings = "".join(f"{key} = {value}\n" for key, value in remote.items())
    for place in (here, there):  # as `dvc remote add --local --default` does
        (place / ".dvc/config.local").write_text(f"[core]\nremote = ours\n['remote \"ours\"']\n{settings}")
    assert (there / f"results/tables/{GRID}.csv").exists()  # from git
    assert not (there / "runs").exists()  # only from DVC
    succeed(here, "dvc", "push", "--with-deps", TARGET)
    succeed(there, "dvc", "pull", "--with-deps", TARGET)
    for made in ("data/camvid/manifest.json", "runs/cmb/camvid-small-1_16/0/model.pt"):
        assert (there / made).read_bytes() == (here / made).read_bytes()
    assert dvc_commands(succeed(there, "dvc", "repro", TARGET)) == []


def test_a_local_folder_carries_a_grid(here: Path, tmp_path: Path) -> None:
    carried(here, tmp_path / "there", url=str(tmp_path / "remote"))
    assert list((tmp_path / "remote").rglob("*.dir"))


def test_an_ssh_server_carries_a_grid(here: Path, tmp_path: Path, server: tuple[str, Path]) -> None:
    address, key = server
    carried(here, tmp_path / "there", url=f"{address}{tmp_path}/remote", keyfile=str(key))
    assert list((tmp_path / "remote").rglob("*.dir"))
