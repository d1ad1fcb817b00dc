"""Recording of smoke runs; how they are compared is tested in test_recorded.py."""

import pytest
import smoke

RESULTS = {"01_train_vaes": {"elbo": {"VAE1": {"rbf": 668.8}}}, "06_of_later": {"sure": True, "angle": 0.7}}


def test_only_a_complete_smoke_run_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(smoke, "RECORDED", tmp_path / "smoke.json")
    with pytest.raises(SystemExit, match="no complete smoke run"):
        smoke.record(tmp_path)
    for params, ok in (("smoke", False), (None, True)):
        (tmp_path / "summary.json").write_text(smoke.json.dumps({"params": params, "ok": ok}))
        with pytest.raises(SystemExit, match="no complete smoke run"):
            smoke.record(tmp_path)
    assert not smoke.RECORDED.exists()


def test_recorded_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "RECORDED", tmp_path / "smoke.json")
    (tmp_path / "summary.json").write_text('{"params": "smoke", "ok": true}')
    (tmp_path / "results").mkdir()
    for name, results in RESULTS.items():
        (tmp_path / "results" / f"{name}.json").write_text(smoke.json.dumps(results))
    smoke.record(tmp_path)
    assert smoke.recorded_results() == RESULTS
    assert "torch" in smoke.json.loads(smoke.RECORDED.read_text())["provenance"]["versions"]
    (tmp_path / "results" / "06_of_later.json").write_text('{"sure": false, "angle": 0.7}')
    smoke.record(tmp_path)
    assert "06_of_later/sure: False, recorded True" in capsys.readouterr().out
    assert smoke.recorded_results()["06_of_later"]["sure"] is False
