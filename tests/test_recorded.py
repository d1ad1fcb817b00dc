"""Recorded numbers: how they come about, what passes and what is found, in smoke runs and committed notebooks."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import recorded
import smoke
from nbformat.v4 import new_code_cell, new_notebook, new_output
from recorded import leaves, shown

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
COMMITTED = sorted(NOTEBOOKS.glob("**/[0-9][0-9]_*.ipynb"))

# --- results of a smoke run -------------------------------------------------------------------------------------------

RESULTS = {
    "01_train_vaes": {"headline": "ELBO 600", "elbo": {"VAE1": {"rbf": 668.8}}, "n_parameters": {"vae1": 236321}},
    "02_metric_fields": {"dispersion": {"vae1": {"low": 0.38, "high": 0.51}}},
    "04_worst_case_improvement": {"seeds": {"mean": [0.0218, 0.0263]}, "certified": 1.0},
    "05_two_model_comparison": {"statistics": {"difference (points)": "0.8 [-1.9, 3.3]"}, "VAE1": {"length": "15"}},
    "06_of_later": {"sure": True, "angle": 0.7},
}


def differences(found, kept):
    return recorded.differences(found, kept, recorded.SMOKE, recorded.SMOKE_NOT_COMPARED)


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
        # Four of 40 samples.
        (("04_worst_case_improvement", "certified"), 0.9, 0.85),
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


def test_the_digit_of_a_name_is_no_number():
    assert recorded.differences({"a": "VAE1 2"}, {"a": "VAE2 2"}, recorded.SMOKE) != []
    assert recorded.differences({"a": "VAE1 2"}, {"a": "VAE1 3"}, recorded.SMOKE) == []


def test_only_a_complete_smoke_run_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(smoke, "RECORDED", tmp_path / "smoke.json")
    with pytest.raises(SystemExit, match="no complete smoke run"):
        smoke.record(tmp_path)
    for params, ok in (("smoke", False), (None, True)):
        (tmp_path / "summary.json").write_text(json.dumps({"params": params, "ok": ok}))
        with pytest.raises(SystemExit, match="no complete smoke run"):
            smoke.record(tmp_path)
    assert not smoke.RECORDED.exists()


def test_recorded_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "RECORDED", tmp_path / "smoke.json")
    (tmp_path / "summary.json").write_text('{"params": "smoke", "ok": true}')
    (tmp_path / "results").mkdir()
    for name, results in RESULTS.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(results))
    smoke.record(tmp_path)
    assert smoke.recorded_results() == RESULTS
    assert "torch" in json.loads(smoke.RECORDED.read_text())["provenance"]["versions"]
    (tmp_path / "results" / "06_of_later.json").write_text('{"sure": false, "angle": 0.7}')
    smoke.record(tmp_path)
    assert "06_of_later/sure: False, recorded True" in capsys.readouterr().out
    assert smoke.recorded_results()["06_of_later"]["sure"] is False


# --- what cells show --------------------------------------------------------------------------------------------------

TABLE = "<table><tr><th></th><th>mean</th></tr>\n<tr><th>a &amp; b</th><td>1.5</td></tr></table>"


def test_what_a_cell_shows():
    outputs = [
        new_output("stream", text="length 3.1\n\nlen"),
        new_output("display_data", data={"image/png": "QUJD", "text/plain": "<Figure size 10x10>"}),
        new_output("stream", text="gth 3.2, sure\n"),
        new_output("execute_result", data={"text/html": TABLE, "text/plain": "     mean\na & b  1.5"}),
        new_output("execute_result", data={"text/markdown": "| | y |\n|---|---|\n| x | 3 |"}),
    ]
    assert shown(outputs) == {
        "length": "3.1",
        "length #": "",
        "length (again 1)": "3.2",
        "length #, sure": "",
        "a & b | mean": "1.5",
        "x | y": "3",
    }


def test_heads_and_indices_of_several_levels():
    head = '<tr><th></th><th></th><th colspan="2" halign="left">VAE1</th></tr>'
    head += "<tr><th></th><th></th><th>a</th><th>b</th></tr>"
    index = "<tr><th>model</th><th>d</th><th></th><th></th></tr>"
    rows = "<tr><th>x</th><th>1</th><td>1</td><td>2</td></tr><tr><th>2</th><td>3</td><td>4</td></tr>"
    table = new_output("execute_result", data={"text/html": f"<table>{head}{index}{rows}</table>"})
    assert shown([table]) == {"x 1 | VAE1 a": "1", "x 1 | VAE1 b": "2", "2 | VAE1 a": "3", "2 | VAE1 b": "4"}


def compared(notebook):
    """Cells of a notebook whose numbers are compared, by name."""
    for cell in notebook.cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            yield cell


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_wrong_number_in_a_committed_notebook_is_found(path):
    """Each number that is compared, by itself off by itself and three last digits more, is found, above or below."""
    missed = []
    for cell in compared(nbformat.read(path, 4)):
        where, numbers = f"{path.stem}/{cell.id}", shown(cell.outputs)
        for name, text in numbers.items():
            parts = recorded._NUMBER.split(text)
            for k in range(1, len(parts), 2):
                value, digit = recorded._value(parts[k]), recorded._last_digit(parts[k])
                far = abs(value) + 3 * digit
                for wrong in (value + far, value - far):
                    other = "".join([*parts[:k], f"{wrong:g}", *parts[k + 1 :]])
                    if not recorded.differences({where: numbers | {name: other}}, {where: numbers}, recorded.CELLS):
                        missed.append(f"{where}/{name}: {other!r} for {text!r}")
    assert not missed, "\n".join(missed)


def test_no_tolerance_is_left_over():
    results = [name for notebook, value in smoke.recorded_results().items() for name, _ in leaves(value, notebook)]
    cells = [
        name
        for path in COMMITTED
        for cell in compared(nbformat.read(path, 4))
        for name, _ in leaves(shown(cell.outputs), f"{path.stem}/{cell.id}")
    ]
    for names, tolerances, rest in (
        (results, recorded.SMOKE, recorded.SMOKE_NOT_COMPARED),
        (cells, recorded.CELLS, recorded.CELLS_NOT_COMPARED),
    ):
        first = {next(t.pattern for t in tolerances if recorded.fnmatchcase(name, t.pattern)) for name in names}
        left = [t.pattern for t in tolerances if t.pattern not in first]
        # A repository made for students has no solutions.
        solved = any("solutions" in path.stem for path in COMMITTED)
        assert [pattern for pattern in left if solved or "_solutions/" not in pattern] == []
        assert [pattern for pattern in rest if not any(recorded.fnmatchcase(name, pattern) for name in names)] in (
            [],
            ["*seconds*"],
        )
        assert all(t.why for t in tolerances)


# --- in nbval itself --------------------------------------------------------------------------------------------------


def notebook_that_shows(text, *, tags=("nbval-ignore-output",), source='print("length", 3.14)'):
    output = new_output("stream", text=text)
    return new_notebook(
        cells=[new_code_cell(source, outputs=[output], execution_count=1, metadata={"tags": list(tags)})],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


@pytest.mark.slow
def test_nbval_compares_numbers_in_what_it_would_ignore(tmp_path):
    shutil.copyfile(NOTEBOOKS / "conftest.py", tmp_path / "conftest.py")
    cases = {
        "same": notebook_that_shows("length 3.14\n"),
        "rounded": notebook_that_shows("length 3.15\n"),
        "wrong": notebook_that_shows("length 3.34\n"),
        "words": notebook_that_shows("size 3.14\n"),
        "missing": notebook_that_shows("length 3.14\nand more\n"),
        "exact": notebook_that_shows("length 3.15\n", tags=["exact"]),
    }
    for name, notebook in cases.items():
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "-q"]
    options = ["--color=no", "-o", f"pythonpath={Path(__file__).parent}", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    failed = set(re.findall(r"^FAILED (\w+)\.ipynb", done.stdout, re.MULTILINE))
    assert failed == {"wrong", "words", "missing", "exact"}, done.stdout + done.stderr
    assert re.search(r"length: '3.14', recorded '3.34' .*rounding", done.stdout)
