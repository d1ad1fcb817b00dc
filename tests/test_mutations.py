"""The faults of tests/mutations.py: each still fits the code, and a few are made and judged.

Making all of them takes minutes: `python tests/mutations.py`.
"""

import json
import re
import subprocess
import sys

import mutations
import pytest
from faults import FAULTS, Fault
from mutations import ROOT, mutated

MODULES = {path.relative_to(ROOT / "lgi").parts[0].removesuffix(".py") for path in (ROOT / "lgi").rglob("*.py")}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_fits_the_code(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    # A fault that cannot be compiled would only be reported as broken.
    compile(mutated(fault, text), fault.file, "exec")
    assert fault.new != fault.old
    assert fault.why
    assert fault.tests
    for test in fault.tests:
        file, *_, name = test.split("::")
        assert f" {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"there is no {test}"


def test_faults_are_in_all_modules_and_named_apart():
    assert {fault.file.split("/")[1].removesuffix(".py") for fault in FAULTS} == MODULES - {"__init__"}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24


def test_text_that_is_not_there_once_is_refused():
    for old in ("no such text", "e"):
        with pytest.raises(mutations.Refusal, match=r"its old text once in lgi/spline\.py, found it \d+ times"):
            mutated(Fault("f", "w", "lgi/spline.py", old, "new", ("test_spline.py",)), "one text, of more")


# In a process of its own: that of this test has imported lgi.
JUDGE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import mutations
from faults import Fault
faults = [Fault(**fault) for fault in json.loads(sys.argv[2])]
for fault, found in mutations.judge(faults, n_jobs=2):
    print(json.dumps([fault.name, found.word, found.detail]))
"""


def judged(faults, begin):
    command = [sys.executable, "-c", begin + JUDGE, str(ROOT / "tests"), json.dumps(faults)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def fault(name, old, new, *tests):
    tests = [f"test_spline.py::{test}" for test in tests]
    return {"name": name, "why": "to be seen", "file": "lgi/spline.py", "old": old, "new": new, "tests": tests}


@pytest.mark.slow
def test_faults_are_judged():
    insertion = "test_default_insertion_halves_the_largest_interval"
    middle = "u = float(T[j] + T[j + 1]) / 2"
    faults = [
        fault("caught", middle, "u = float(2 * T[j] + T[j + 1]) / 3", insertion),
        fault("survived", middle, "u = float(T[j + 1] + T[j]) / 2", insertion),
        fault("broken import", "DEGREE = 3\n", "DEGREE = three\n", insertion),
        fault("broken call", middle, "u = float(T[j] + T[k + 1]) / 2", insertion),
    ]
    # What takes long is imported once, before it forks.
    done = judged(faults, "import hypothesis.strategies, pytest, scipy.interpolate, torch\n")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("without a fault: 1 passed")
    outcomes = {name: (word, detail) for name, word, detail in map(json.loads, lines)}
    assert outcomes["caught"] == ("caught", insertion)
    assert outcomes["survived"] == ("survived", "1 passed")
    assert outcomes["broken import"][0] == "broken"
    assert "'three' is not defined" in outcomes["broken import"][1]
    assert outcomes["broken call"][0] == "broken"
    assert "'k' is not defined" in outcomes["broken call"][1]
    assert (ROOT / "lgi" / "spline.py").read_text(encoding="utf-8").count(middle) == 1


def test_another_lgi_is_refused():
    elsewhere = (
        "import sys, types\nsys.modules['lgi'] = types.ModuleType('lgi')\nsys.modules['lgi'].__file__ = '/there'\n"
    )
    done = judged([fault("f", "DEGREE = 3\n", "DEGREE = 4\n", "test_inputs_are_never_changed")], elsewhere)
    assert done.returncode == 1
    assert re.search(r"Refusal: would test /there, not the copy in", done.stderr)


def test_command_line(capsys):
    assert mutations.main(["--list", "--only", "knot beside the middle"]) == 0
    assert capsys.readouterr().out.startswith("lgi/spline.py: knot beside the middle: refinement")
    with pytest.raises(SystemExit):
        mutations.main(["--only", "no such fault"])
    assert "there is no fault no such fault" in capsys.readouterr().err
