"""Pack a run into one file, to publish it."""

import io
import tarfile
from pathlib import Path

from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256, written_whole
from semiseg.base.paths import Run
from semiseg.evaluation import record, trained
from semiseg.training.checkpoint import Identity

SUMS = "SHA256SUMS"  # digests of the other members, in sha256sum's format


def pack(run: Run, path: Path) -> str:
    """Write model.pt, history.csv, images.csv, predictions/ and metrics.json of ``run`` to a tar file.

    Equal runs give equal bytes. Returns the sha256 (hex) of the file. Raises UserError if ``path`` exists, a
    part is missing, or model.pt is not the network that the record scored.
    """
    if path.exists():
        raise UserError(f"{path}: exists; remove it, or give another file")
    if not run.metrics.exists():
        raise UserError(f"{run.metrics}: not there; evaluate the run first")
    origin = record.read(run.metrics).provenance
    identity = Identity(origin.config_sha256, origin.data_sha256, origin.labelled_sha256)
    if difference := identity.difference(trained.read(run.artefacts / "model.pt")):
        raise UserError(f"{run.artefacts / 'model.pt'}: trained with {difference} than {run.metrics} names")
    own = [run.artefacts / name for name in ("model.pt", "history.csv", "images.csv")]
    predictions = sorted((run.artefacts / "predictions").rglob("*.png"))
    missing = [each for each in (*own, *predictions) if not each.exists()]  # or a link to nowhere
    if missing or not predictions:
        raise UserError(
            f"{(missing or [run.artefacts / 'predictions'])[0]}: not there; evaluate the run again"
        )
    files = {each.relative_to(run.artefacts).as_posix(): each for each in (*own, *predictions)}
    files["metrics.json"] = run.metrics
    sums = "".join(f"{file_sha256(files[name])}  {name}\n" for name in sorted(files)).encode()
    with written_whole(path) as temporary, tarfile.open(temporary, "w") as archive:
        _add(archive, SUMS, sums)
        for name in sorted(files):
            _add(archive, name, files[name].read_bytes())
    return file_sha256(path)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without owner and time
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
