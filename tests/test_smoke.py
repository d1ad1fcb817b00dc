"""Comparison of smoke runs with what is recorded: what passes, and what is found."""

import copy

import pytest
import smoke
from smoke import differences, leaves

RESULTS = {
    "01_train_vaes": {"headline": "ELBO 600", "elbo": {"VAE1": {"rbf": 668.8}}, "n_parameters": {"vae1": 236321}},
    "02_metric_fields": {"dispersion": {"vae1": {"low": 0.38, "high": 0.51}}},
    "04_worst_case_improvement": {"seeds": {"mean": [0.0218, 0.0263]}, "grid": {"step 1": [0.02, 0.01, 0.04, 1.0]}},
    "05_two_model_comparison": {"statistics": {"difference (points)": "0.8 [-1.9, 3.3]"}, "VAE1": {"length": "15"}},
    "06_of_later": {"sure": True, "angle": 0.7},
}


def changed(*path, to):
    results = copy.deepcopy(RESULTS)
    place = results
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return results


def test_equal_results_do_not_differ():
    assert differences(RESULTS, copy.deepcopy(RESULTS)) == []


@pytest.mark.parametrize(
    ("path", "within", "beyond"),
    [
        (("01_train_vaes", "elbo", "VAE1", "rbf"), 673.0, 690.0),
        (("01_train_vaes", "n_parameters", "vae1"), 236321.0, 236322),
        (("02_metric_fields", "dispersion", "vae1", "low"), 0.3805, 0.39),
        (("04_worst_case_improvement", "seeds", "mean", 1), 0.0268, 0.0163),
        # Two of six samples.
        (("04_worst_case_improvement", "grid", "step 1", 3), 0.6667, 0.5),
        (("04_worst_case_improvement", "grid", "step 1", 2), 0.0415, 0.05),
        # Printed numbers, of which the last digit may be rounded in another way.
        (("05_two_model_comparison", "statistics", "difference (points)"), "0.9 [-1.8, 3.2]", "0.8 [1.9, 3.3]"),
        (("05_two_model_comparison", "statistics", "difference (points)"), "0.7 [-1.9, 3.3]", "0.8 (-1.9, 3.3)"),
        (("05_two_model_comparison", "VAE1", "length"), "16", "18"),
        (("06_of_later", "angle"), 0.71, 0.73),
        (("06_of_later", "sure"), True, False),
        (("01_train_vaes", "headline"), "whatever it says", None),
    ],
)
def test_tolerances(path, within, beyond):
    assert differences(changed(*path, to=within), RESULTS) == []
    if beyond is not None:
        (said,) = differences(changed(*path, to=beyond), RESULTS)
        assert said.startswith("/".join(map(str, path)) + ": ")
        assert repr(beyond) in said


def test_what_comes_and_goes_is_found():
    more = changed("01_train_vaes", "new", to=1.0)
    assert differences(more, RESULTS) == ["01_train_vaes/new: not recorded"]
    assert differences(RESULTS, more) == ["01_train_vaes/new: not there any more"]
    fewer = {name: results for name, results in RESULTS.items() if name != "06_of_later"}
    assert [said.partition("/")[0] for said in differences(RESULTS, fewer)] == ["06_of_later"] * 2
    other_kind = changed("06_of_later", "angle", to="0.7")
    assert len(differences(other_kind, RESULTS)) == 1


def test_no_tolerance_is_left_over():
    recorded = smoke.recorded_results()
    names = [name for notebook, results in recorded.items() for name, _ in leaves(results, notebook)]
    numbers = {notebook[:2] for notebook in recorded}
    for pattern in [*smoke._IGNORED, *(pattern for pattern, *_ in smoke._TOLERANCES)]:
        if pattern[:2] in numbers:
            assert any(smoke.fnmatchcase(name, pattern) for name in names), pattern


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
