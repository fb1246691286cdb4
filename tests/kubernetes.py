"""Kubernetes' API on loopback: each job's pod is a process of this machine, in an empty folder of its own.

Only the container's command is obeyed of a pod's specification; its requests are kept for tests to look at.
`python -m tests.kubernetes` installs rsync, by which Snakemake copies, if there is none.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Cluster:
    """Each pod has a folder in ``place``, named after its job; the first ``removed`` pods vanish at once."""

    place: Path
    removed: int
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def submit(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        self.jobs[name] = job
        if len(self.jobs) <= self.removed:
            return
        (container,) = job["spec"]["template"]["spec"]["containers"]
        (self.place / name).mkdir()
        with (self.place / f"{name}.log").open("w") as log:
            self.pods[name] = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=self.place / name,
                env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def status(self, name: str) -> dict[str, int]:
        if name not in self.pods:
            return {"failed": 1}
        status = self.pods[name].poll()
        return {"active": 1} if status is None else {"succeeded": 1} if status == 0 else {"failed": 1}

    def pods_of(self, name: str) -> list[dict[str, Any]]:
        if name not in self.pods:
            return []
        status = self.pods[name].poll()
        container = {
            **{"name": "snakemake", "image": "", "imageID": "", "ready": status is None, "restartCount": 0},
            "state": {} if status is None else {"terminated": {"exitCode": status}},
        }
        return [{"metadata": {"name": f"{name}-pod"}, "status": {"containerStatuses": [container]}}]

    def end(self) -> None:
        for pod in self.pods.values():
            if pod.poll() is None:
                os.killpg(pod.pid, signal.SIGKILL)
            pod.wait()


@contextmanager
def serve(place: Path, removed: int = 0) -> Iterator[tuple[Cluster, Path]]:
    """Yield a cluster that keeps its pods in ``place``, and the kubeconfig by which clients find it."""
    cluster = Cluster(place, removed)

    class Api(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.received()
            if self.path.endswith("/jobs"):
                cluster.submit(sent)
            self.answer(201, sent)

        def do_GET(self) -> None:
            if job := re.fullmatch(r"/apis/batch/v1/namespaces/default/jobs/([^/]+)/status", self.path):
                self.answer(200, {"metadata": {"name": job[1]}, "status": cluster.status(job[1])})
            elif pods := re.fullmatch(r"/api/v1/.*/pods\?labelSelector=job-name%3D([^&]+)", self.path):
                self.answer(200, {"items": cluster.pods_of(pods[1])})
            else:  # the log of a container before its only one, too
                self.answer(400, {"status": "Failure", "message": f"not served here: {self.path}"})

        def do_DELETE(self) -> None:
            self.received()
            self.answer(200, {"status": "Success"})

        def received(self) -> dict[str, Any]:
            sent: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return sent

        def answer(self, code: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    config = place / "kubeconfig.json"
    address = f"http://127.0.0.1:{server.server_address[1]}"
    config.write_text(
        json.dumps(
            {
                "current-context": "loopback",
                "contexts": [{"name": "loopback", "context": {"cluster": "loopback", "user": "someone"}}],
                "clusters": [{"name": "loopback", "cluster": {"server": address}}],
                "users": [{"name": "someone", "user": {}}],
            }
        )
    )
    try:
        yield cluster, config
    finally:
        server.shutdown()
        server.server_close()
        cluster.end()


if __name__ == "__main__":
    if shutil.which("rsync") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            sys.exit("rsync, with which Snakemake copies, is not installed: take your system's package")
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(["apt-get", "-qq", "install", "--no-install-recommends", "-y", "rsync"], check=True)
    print(f"rsync: {shutil.which('rsync')}")
