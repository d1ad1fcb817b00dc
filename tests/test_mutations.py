"""The faults of tests/mutations.py: each still fits the code, and a few are made and judged.

Making all of them takes minutes: `python tests/mutations.py`.
"""

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


def fault(name, old, new):
    test = "test_spline.py::test_default_insertion_halves_the_largest_interval"
    return Fault(name, "to be seen", "lgi/spline.py", old, new, (test,))


@pytest.mark.slow
def test_faults_are_judged(capsys):
    middle = "u = float(T[j] + T[j + 1]) / 2"
    faults = [
        fault("caught", middle, "u = float(2 * T[j] + T[j + 1]) / 3"),
        fault("survived", middle, "u = float(T[j + 1] + T[j]) / 2"),
        fault("broken import", "DEGREE = 3\n", "DEGREE = three\n"),
        fault("broken call", middle, "u = float(T[j] + T[k + 1]) / 2"),
    ]
    found = {fault.name: outcome for fault, outcome in mutations.judge(faults, n_jobs=2)}
    assert capsys.readouterr().out.startswith("without a fault: 1 passed")
    words = {name: (outcome.word, outcome.detail) for name, outcome in found.items()}
    assert words["caught"] == ("caught", "test_default_insertion_halves_the_largest_interval")
    assert words["survived"] == ("survived", "1 passed")
    assert words["broken import"][0] == words["broken call"][0] == "broken"
    assert "'three' is not defined" in words["broken import"][1]
    assert "'k' is not defined" in words["broken call"][1]
    assert (ROOT / "lgi" / "spline.py").read_text(encoding="utf-8").count(middle) == 1


def test_command_line(capsys):
    assert mutations.main(["--list", "--only", "knot beside the middle"]) == 0
    assert capsys.readouterr().out.startswith("lgi/spline.py: knot beside the middle: refinement")
    with pytest.raises(SystemExit):
        mutations.main(["--only", "no such fault"])
    assert "there is no fault no such fault" in capsys.readouterr().err
