"""lgi.collect: one table of runs of the notebooks and of studies."""

import json
import sys

import pytest
import torch

import lgi
from lgi import artifacts
from lgi.artifacts import ArtifactError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of notebooks, one of which has failed since, a study of which a shard is missing, and a book."""
    folder = tmp_path_factory.mktemp("a folder") / "runs"
    ok = {"status": "ok", "seconds": 2.5, "provenance": {"git_commit": "abc", "versions": {"torch": "2"}}}
    for run, step in (("default", 1.0), ("long", 4.0)):
        (folder / run / "results").mkdir(parents=True)
        record = {"notebook": "04_x", **ok, "defaults": {"step": 1.0, "seed": 0}, "parameters": {"step": step}}
        failed = {"notebook": "05_y", "status": "failed", "error": "no", "kept": {"notebook": "05_y", **ok}}
        (folder / run / "summary.json").write_text(json.dumps({"notebooks": [record, failed]}))
        results = {"headline": f"step {step}", "mean": step / 10, "interval": [0, 1], "of": {"vae1": 3}, "all": [0] * 5}
        (folder / run / "results" / "04_x.json").write_text(json.dumps(results))
    (folder / "book").mkdir()
    metric = lgi.PullbackMetric(lambda z: torch.cat([z, z], dim=1), latent_dim=2)
    options = {"folder": folder / "study", "chunk_size": 3, "progress": False, "seed": 7}
    lgi.worst_case_improvement(metric, 6, shard=(1, 2), **options)
    return folder


def test_a_row_for_each_notebook_of_a_run_and_for_each_study(runs):
    table = lgi.collect(runs / "*")
    assert [tuple(row) for row in table[["run", "notebook"]].itertuples(index=False)] == [
        ("default", "04_x"), ("default", "05_y"), ("long", "04_x"), ("long", "05_y"), ("study", "study")
    ]  # fmt: skip
    long = table.iloc[2]
    found = long[["status", "headline", "seconds", "parameters.step", "parameters.seed", "results.mean"]]
    assert found.tolist() == ["ok", "step 4.0", 2.5, 4.0, 0, 0.4]
    assert long[["results.interval.0", "results.interval.1", "results.of.vae1"]].tolist() == [0, 1, 3]
    assert long[["provenance.git_commit", "provenance.versions.torch"]].tolist() == ["abc", "2"]
    assert not any(column.startswith("results.all") for column in table)
    # What lies there is of the run before the failed one.
    assert table.status[3] == "ok"
    study = table.iloc[4]
    assert study.status == "3 of 6 samples"
    assert study[["parameters.seed", "results.samples", "results.mean", "results.certified"]].tolist() == [7, 3, 0, 1]
    assert study.seconds > 0
    assert study["provenance.versions.torch"] == artifacts.installed_version("torch")
    assert list(table)[:5] == ["run", "notebook", "status", "headline", "seconds"]


def test_folders_may_be_several_relative_or_left_out(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.parent)
    assert lgi.collect("runs/l*").run.unique().tolist() == ["long"]
    assert lgi.collect(["runs/long", "runs/d*", "runs/long"]).run.unique().tolist() == ["long", "default"]
    monkeypatch.setenv("LGI_RUNS", str(runs))
    monkeypatch.setattr(artifacts, "repository_root", lambda: runs.parent)
    monkeypatch.chdir(tmp_path)
    assert len(lgi.collect()) == len(lgi.collect("runs/*")) == 5


def test_what_cannot_be_collected_says_what_to_do(runs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no folder nothing/\* in .*make reproduce PARAMS=smoke"):
        lgi.collect("nothing/*")
    with pytest.raises(ValueError, match="no results in book: expected folders of make reproduce"):
        lgi.collect(runs / "book")
    for name in ("summary.json", "results/01_a.json"):
        file = tmp_path / name.replace("/", "") / name
        file.parent.mkdir(parents=True)
        for content in ("{", "[]"):
            file.write_text(content)
            with pytest.raises(ArtifactError, match=f"{file.name} is damaged: delete it"):
                lgi.collect(tmp_path / name.replace("/", ""))
    (chunk,) = (runs / "study").rglob("*.safetensors")
    copy = tmp_path / "study" / chunk.relative_to(runs / "study")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated or was edited"):
        lgi.collect(tmp_path / "study")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install 'lgi"):
        lgi.collect(runs / "*")
