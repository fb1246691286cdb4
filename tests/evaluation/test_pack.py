"""A run in one file."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from semiseg.base.errors import UserError
from semiseg.base.parameters import RunConfig
from semiseg.data import prepared, splits
from semiseg.evaluation import evaluate, record, trained
from semiseg.evaluation.pack import pack
from semiseg.training import step
from tests import miniature
from tests.miniature import CPU
from tests.tiny import tiny_network


@pytest.fixture
def config(mini_project: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return a run that is trained and evaluated."""
    for module in (step, trained):
        monkeypatch.setattr(module, "build", lambda network, num_classes: tiny_network(num_classes))
    config = miniature.config()
    miniature.train(config)
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    result = evaluate.score_run(config, dataset, splits.read(config.run.split, 0), CPU)
    record.write(result, config.run.metrics)
    return config


def test_the_file_holds_the_run_and_its_digests(config: RunConfig) -> None:
    digest = pack(config.run, Path("one.tar"))
    assert digest == hashlib.sha256(Path("one.tar").read_bytes()).hexdigest()
    with tarfile.open("one.tar") as archive:
        archive.extractall("out", filter="data")
    sums = dict(reversed(line.split("  ")) for line in Path("out/SHA256SUMS").read_text().splitlines())
    assert {"model.pt", "history.csv", "images.csv", "metrics.json"} < sums.keys()
    assert sum(name.startswith("predictions/") for name in sums) == 2
    for name, sha256 in sums.items():
        own = config.run.metrics if name == "metrics.json" else config.run.artefacts / name
        assert Path("out", name).read_bytes() == own.read_bytes()
        assert hashlib.sha256(own.read_bytes()).hexdigest() == sha256
    (config.run.artefacts / "model.pt").touch()
    assert pack(config.run, Path("two.tar")) == digest


def test_what_is_not_whole_or_not_the_record_s_is_refused(config: RunConfig) -> None:
    pack(config.run, Path("one.tar"))
    with pytest.raises(UserError, match=r"one\.tar"):
        pack(config.run, Path("one.tar"))
    (config.run.artefacts / "images.csv").unlink()
    with pytest.raises(UserError, match=r"images\.csv"):
        pack(config.run, Path("two.tar"))
    text = config.run.metrics.read_text()
    data = record.read(config.run.metrics).provenance.data_sha256
    config.run.metrics.write_text(text.replace(data, "0" * 64))
    with pytest.raises(UserError, match=r"model\.pt"):
        pack(config.run, Path("two.tar"))
    assert not Path("two.tar").exists()


def test_a_record_names_where_it_was_published(config: RunConfig) -> None:
    text = config.run.metrics.read_text()
    assert record.read(config.run.metrics).published_at is None
    config.run.metrics.write_text(
        text.replace('"published_at": null', '"published_at": "https://example.org/one.tar"')
    )
    assert record.read(config.run.metrics).published_at == "https://example.org/one.tar"
    config.run.metrics.write_text(text.replace('"published_at": null', '"published_at": "somewhere"'))
    with pytest.raises(UserError, match="published_at"):
        record.read(config.run.metrics)
