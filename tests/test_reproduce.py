"""The runner of the notebooks, on tiny notebooks in a temporary folder."""

import ast
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import nbformat
import pytest
import reproduce
import zmq
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from series import FIGURE, RECORD


def sources(path):
    return [cell.source for cell in nbformat.read(path, 4).cells]


def test_series_runs_in_order_and_ends_with_the_table(series, capsys):
    series.write("02_b", "import os\nimport pathlib\nassert pathlib.Path(os.environ['LGI_RUNS'], run).exists()")
    series.write("01_a", RECORD)
    series.write("03_interactive", "1 / 0")
    interactive = nbformat.read(series.folder / "03_interactive.ipynb", 4)
    interactive.metadata["lgi"] = {"reproduce": False}
    nbformat.write(interactive, series.folder / "03_interactive.ipynb")
    (series.folder / "unnumbered.ipynb").write_text("not run")
    assert series.run() == 0
    out, err = capsys.readouterr()
    table = (
        r"notebook +seconds +ok +headline\n01_a +[\d.]+ +yes +seed 0, step 0.1, sizes \[1, 2\]\n02_b +[\d.]+ +yes +-\n"
    )
    assert re.search(table, out)
    assert "FAILED" not in err
    summary = json.loads((series.default / "summary.json").read_text())
    assert (summary["run"], summary["params"], summary["ok"]) == ("default", None, True)
    assert [record["notebook"] for record in summary["notebooks"]] == ["01_a", "02_b"]
    assert summary["notebooks"][0]["headline"] == "seed 0, step 0.1, sizes [1, 2]"
    # Nothing differs from the notebook's own values, so that no cell is injected.
    assert sources(series.default / "01_a.ipynb") == sources(series.folder / "01_a.ipynb")


def test_failure_is_loud_and_stops_the_series(series, capsys):
    series.write("01_a", "before = 1", "def broken():\n    raise ValueError('no geodesic')", "broken()", "after = 1")
    series.write("02_b", "1")
    assert series.run("-p", "seed", "3") == 1
    out, err = capsys.readouterr()
    assert "FAILED: 01_a.ipynb in cell 5 of 6" in err
    assert "\nbroken()\n" in err
    assert "ValueError: no geodesic" in err
    assert "\x1b" not in err + out
    assert "Not run because of it: 02_b" in err
    assert [line.split()[2] for line in out.splitlines() if line.startswith("01_a  ")] == ["NO"]
    assert not (series.runs / "custom" / "02_b.ipynb").exists()
    summary = json.loads((series.runs / "custom" / "summary.json").read_text())
    assert [record["status"] for record in summary["notebooks"]] == ["failed", "skipped"]
    assert "no geodesic" in summary["notebooks"][0]["error"]
    assert not summary["ok"]


@pytest.mark.parametrize(
    ("source", "message"), [("import os; os._exit(3)", "Kernel died"), ("raise SystemExit(0)", "SystemExit")]
)
def test_a_notebook_that_ends_early_has_failed(series, capsys, source, message):
    series.write("01_a", "1", source, "2")
    assert series.run() == 1
    err = capsys.readouterr().err
    assert "FAILED: 01_a.ipynb in cell 4 of 5" in err
    assert f"\n{source}\n" in err
    assert message in err


def test_parameters_of_variant_and_command_line(series, capsys):
    series.write("01_a", RECORD)
    (series.folder / "params" / "01_smoke.yaml").write_text("seed: 5\nstep: 1.0e-3\nsizes: [7]\n")
    assert series.run("--params", "smoke", "-p", "seed", "6") == 0
    summary = json.loads((series.runs / "smoke" / "summary.json").read_text())
    assert summary["params"] == "smoke"
    assert summary["notebooks"][0]["headline"] == "seed 6, step 0.001, sizes [7]"
    assert summary["notebooks"][0]["parameters"] == {"seed": 6, "step": 0.001, "sizes": [7], "run": "smoke"}
    assert "seed 6, step 0.001, sizes [7]" in capsys.readouterr().out


REFUSED = [
    ({"01_x.yaml": "sede: 1"}, ["--params", "x"], "unknown parameter sede; known are fast, run, seed, sizes, step"),
    ({"01_x.yaml": "step: 1e-3"}, ["--params", "x"], "step is declared float, got '1e-3', str: YAML .* 1.0e-3"),
    ({"01_x.yaml": "seed: 1.5"}, ["--params", "x"], "seed is declared int, got 1.5, float"),
    ({"01_x.yaml": "seed: true"}, ["--params", "x"], "seed is declared int, got True, bool"),
    ({"01_x.yaml": "fast: 'false'"}, ["--params", "x"], "fast is declared bool, got 'false', str"),
    ({"01_x.yaml": "sizes: [1, 2.5]"}, ["--params", "x"], r"sizes is declared list\[int\], got \[1, 2.5\], list"),
    ({"01_x.yaml": "seed: null"}, ["--params", "x"], "seed is declared int, got None"),
    ({"01_x.yaml": "run: other"}, ["--params", "x"], "named by --run"),
    ({"01_x.yaml": "- seed"}, ["--params", "x"], "expected lines 'name: value'"),
    ({"01_x.yaml": ""}, ["--params", "y"], "01_y.yaml does not exist, .* known variants: x"),
    ({}, ["-p", "sede", "1"], "unknown parameter sede; known are fast, run, seed, sizes, step"),
    ({}, ["-p", "seed", "one"], "seed is declared int, got 'one', str"),
    ({}, ["-p", "run", "other"], "named by --run"),
    ({}, ["--only", "01,08"], "no notebook with number 08 .* there are 01"),
    ({"../01_b.ipynb": ""}, [], "01_a.ipynb and 01_b.ipynb have the same number"),
]


@pytest.mark.parametrize(("files", "options", "message"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_refused_before_anything_runs(series, capsys, files, options, message):
    series.write("01_a", RECORD)
    for name, content in files.items():
        (series.folder / "params" / name).write_text(content)
    assert series.run(*options) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert not list(series.runs.glob("*/*.ipynb"))
    assert not list(series.runs.glob("*/results"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "../elsewhere"], "expected a run name"),
        (["--run", "default", "-p", "seed", "1"], "give this one another name"),
        (["--params", "default"], "give this one another name"),
        (["commit", "-p", "seed", "1"], "what is committed is the default run"),
    ],
)
def test_run_names(series, capsys, options, message):
    series.write("01_a")
    with pytest.raises(SystemExit) as stopped:
        series.run(*options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1e-3", "float", 1e-3), ("3", "float", 3.0), ("3", "int", 3), ("true", "bool", True), ("False", "bool", False),
        ("3", "str", "3"), ("None", "int", None), ("[1, 2]", "list[int]", [1, 2]), ("x", "int", "x"),
        ("x", "float", "x"),
    ],
)  # fmt: skip
def test_from_text(text, annotation, value):
    found = reproduce.from_text(text, annotation)
    assert found == value
    assert type(found) is type(value)


def test_what_an_earlier_run_left_stays_and_is_not_shown_as_this_ones(series, capsys):
    series.write("01_a", RECORD)
    series.write("02_b", "1 / 0")
    series.write("03_c", "1")
    folder = series.default
    (folder / "results").mkdir(parents=True)
    old = {}
    for name in ("01_a", "02_b", "03_c"):
        old[folder / "results" / f"{name}.json"] = '{"headline": "of yesterday"}'
        old[folder / f"{name}.ipynb"] = "of yesterday"
    for path, text in old.items():
        path.write_text(text)
    before = {"notebook": "02_b", "status": "ok", "headline": "of yesterday"}
    other = {"notebook": "09_other", "status": "ok", "headline": "of yesterday"}
    (folder / "summary.json").write_text(json.dumps({"notebooks": [before, other, {"notebook": "03_c"}]}))
    for _ in range(2):
        assert series.run() == 1
        out, err = capsys.readouterr()
        assert "of yesterday" not in out + err
        assert f"02_b: {folder} still holds what an earlier run has left" in out
        assert f"What it has written lies in {folder / 'unfinished' / 'default'}" in err
        # 01 ran: it alone is new.
        assert {path.name for path, text in old.items() if path.read_text() != text} == {"01_a.json", "01_a.ipynb"}
        summary = json.loads((folder / "summary.json").read_text())
        found = {record["notebook"]: record for record in summary["notebooks"]}
        assert {name: record["status"] for name, record in found.items()} == {
            "01_a": "ok", "02_b": "failed", "03_c": "skipped", "09_other": "ok"
        }  # fmt: skip
        assert not summary["ok"]
        assert (found["02_b"]["kept"], found["09_other"]) == (before, other)
        assert "kept" not in found["03_c"]
        assert (folder / "unfinished" / "default" / "02_b.ipynb").exists()
    series.write("02_b", "1")
    assert series.run() == 0
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "01_a.ipynb", "02_b.ipynb", "03_c.ipynb", "results", "summary.json"
    ]  # fmt: skip
    # Notebooks that record nothing now have no results.
    assert [path.name for path in folder.glob("results/*")] == ["01_a.json"]


def test_interrupted_before_anything_ran_all_is_as_it_was(series, monkeypatch, capsys, request):
    # Who runs the tests in the background of a shell, ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    series.write("01_a", RECORD, FIGURE)
    assert series.run() == 0
    files = {path: path.read_bytes() for path in series.runs.parent.rglob("*") if path.is_file()}
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr(reproduce, "execute", lambda *_, signal_=signal_: signal.raise_signal(signal_))
        assert series.run() == 128 + signal_
        out, err = capsys.readouterr()
        assert f"{series.default} is as it was" in out
        assert err == "\nreproduce: interrupted\n"
        assert {path: path.read_bytes() for path in series.runs.parent.rglob("*") if path.is_file()} == files


def test_a_run_that_was_killed_while_it_moved_its_files_is_put_in_order(series):
    series.write("01_a", RECORD)
    assert series.run() == 0
    new = series.default / ".new" / "results" / "01_a.json"
    new.parent.mkdir(parents=True)
    new.write_text('{"headline": "moved"}')
    series.write("01_a", "1 / 0")
    assert series.run() == 1
    assert "moved" in (series.default / "results" / "01_a.json").read_text()
    assert not (series.default / ".new").exists()


def test_a_run_writes_into_its_folder_alone_and_commit_renews_the_figures(series):
    series.write("01_a", FIGURE)
    series.write("02_b", FIGURE)
    project = series.folder.parent
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    for options in ([], ["-p", "seed", "1", "--only", "01"]):
        assert series.run(*options) == 0
        assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in series.default.glob("figures/*")) == ["01_a_0.png", "02_b_0.png"]
    (series.default / "figures" / "old.png").write_text("of an earlier version")
    for only, figures in ((["--only", "02"], ["02_b_0.png"]), ([], ["01_a_0.png", "02_b_0.png"])):
        assert series.run("commit", *only) == 0
        assert sorted(path.name for path in series.figures.iterdir()) == figures


@pytest.mark.skipif(not zmq.has("ipc"), reason="kernels are reached by ports here")
def test_each_kernel_is_reached_in_a_folder_of_its_own(series):
    """By default it is in the current one, where it meets those of another run, or of one that was killed."""
    asked = "from ipykernel.connect import get_connection_info\nget_connection_info(unpack=True)['ip']"
    notebooks = [series.write(name, asked) for name in ("01_a", "02_b")]
    assert series.run() == 0
    found = [nbformat.read(series.default / path.name, 4).cells[-1].outputs[0].data["text/plain"] for path in notebooks]
    first, second = (Path(ast.literal_eval(text)).parent for text in found)
    assert first != second
    assert not first.exists()
    assert not second.exists()


def test_one_writer_at_a_time(series, capsys):
    series.write("01_a")
    folder = series.default
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"):
        assert series.run() == 2
    assert "another process is writing into" in capsys.readouterr().err
    assert not (folder / "01_a.ipynb").exists()
    # The lock of a process that is gone does not count; some versions of filelock delete it, some do not.
    (folder / ".lock").touch()
    assert series.run() == 0


def test_kernel_of_another_environment_is_refused(series, tmp_path, monkeypatch, capsys):
    series.write("01_a")
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho /another/environment\n")
    other.chmod(0o755)
    description = {"argv": [str(other)], "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(description))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert series.run() == 2
    assert "is not the Python of" in capsys.readouterr().err
    description["argv"] = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps(description))
    assert series.run() == 0


@pytest.mark.slow
def test_interrupt_leaves_a_summary_and_no_kernel(series, tmp_path):
    pid = tmp_path / "pid"
    wait = f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(3600)"
    series.write("01_a", wait)
    series.write("02_b")
    command = [sys.executable, "-c", "import signal, sys, runpy\n"
               "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               f"sys.argv = ['reproduce', '--notebooks', {str(series.folder)!r}]\n"
               f"runpy.run_path({reproduce.__file__!r}, run_name='__main__')"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: pid.exists() and pid.read_text())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()  # when it did not stop, and with it its kernel
    assert process.returncode == 130
    assert "reproduce: interrupted" in err
    assert 'Traceback (most recent call last):\n  File "<string>"' not in err
    assert [line.split()[2:4] for line in out.splitlines() if line.startswith("01_a  ")] == [["stopped", "-"]]
    summary = json.loads((series.default / "summary.json").read_text())
    assert [record["status"] for record in summary["notebooks"]] == ["interrupted", "skipped"]
    kernel = int(pid.read_text())
    wait_for(lambda: not running(kernel))


def wait_for(condition):
    end = time.monotonic() + 300  # not how long it should take, but how long a busy machine might
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def running(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_commit_formats_executes_and_cleans(series):
    path = series.write("01_a", "x = 1+1", "print( x, seed )", "x")
    messy = nbformat.read(path, 4)
    messy.metadata["kernelspec"] = {"display_name": "mine", "language": "python", "name": "mine"}
    messy.metadata["lgi"] = {"reproduce": True}
    messy.cells[2].metadata["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00"}
    messy.cells[3].metadata["tags"] = ["checks"]
    ids = [cell.id for cell in messy.cells]
    nbformat.write(messy, path)
    assert series.run("commit") == 0
    text = path.read_text()
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    code = notebook.cells[1:]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert [cell.source for cell in code[1:]] == ["x = 1 + 1", "print(x, seed)", "x"]
    assert code[2].outputs[0].text == "2 0\n"
    assert code[3].outputs[0].data == {"text/plain": "2"}
    assert [cell.id for cell in notebook.cells] == ids
    assert notebook.metadata.kernelspec == reproduce.KERNEL
    assert notebook.metadata.lgi == {"reproduce": True}
    assert notebook.metadata.language_info.name == "python"
    assert "version" not in notebook.metadata.language_info
    tags = [None, ["parameters"], None, ["checks"], None]
    assert [dict(cell.metadata) for cell in notebook.cells] == [{"tags": each} if each else {} for each in tags]
    assert "papermill" not in text
    assert sys.prefix not in text
    assert text.endswith("}\n")
    # A second call changes nothing.
    assert series.run("commit") == 0
    assert path.read_text() == text


def test_commit_renews_the_solutions_of_the_same_numbers(series):
    for name in ("01_a", "02_b"):
        series.write(name, "1+1")
    names = ("solutions/01_solutions", "solutions/02_solutions")
    paths = [series.write(name, "x = 2+2", "x", parameters="n: int = 3") for name in names]
    other = paths[1].read_bytes()
    assert series.run("commit", "--only", "01") == 0
    cells = nbformat.read(paths[0], 4).cells[1:]
    assert [cell.source for cell in cells] == ["n: int = 3", "x = 2 + 2", "x"]
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    assert cells[2].outputs[0].data == {"text/plain": "4"}
    assert paths[1].read_bytes() == other
    summary = json.loads((series.default / "summary.json").read_text())
    assert [record["notebook"] for record in summary["notebooks"]] == ["01_a"]


@pytest.mark.parametrize("failing", ["02_b", "solutions/01_solutions"])
def test_commit_writes_nothing_of_what_fails(series, failing):
    first = series.write("01_a", "x = 1")
    contents = {path: path.read_bytes() for path in (series.write(failing, "1 / 0"), first)}
    assert series.run("commit") == 1
    if failing != "02_b":  # the series itself is without a fault
        del contents[first]
    assert {path: path.read_bytes() for path in contents} == contents


def test_commit_does_not_overwrite_an_edit_made_meanwhile(series, capsys):
    path = series.write("01_a", "x = 1")
    edit = f'import pathlib\npath = pathlib.Path({str(path)!r})\npath.write_text(path.read_text() + " ")'
    path = series.write("01_a", edit)
    assert series.run("commit") == 2
    assert "01_a.ipynb was edited while it ran" in capsys.readouterr().err
    assert nbformat.read(path, 4).cells[1].execution_count is None


def test_commit_refuses_what_ruff_refuses(series, capfd):
    path = series.write("01_a", "import os, sys\nundefined_name")
    assert series.run("commit") == 2
    assert "F821" in "".join(capfd.readouterr())
    assert not (series.default / path.name).exists()


def test_clean_takes_off_injected_parameters_and_widget_state():
    injected = new_code_cell("seed = 3", metadata={"tags": ["injected-parameters"]})
    cells = [new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}), injected, new_markdown_cell("text")]
    notebook = reproduce.clean(new_notebook(cells=cells, metadata={"papermill": {"a": 1}, "widgets": {"b": 2}}))
    assert [cell.source for cell in notebook.cells] == ["seed: int = 0", "text"]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
