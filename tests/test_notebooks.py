"""Static tests of the committed notebooks (CONTRIBUTING.md, "Notebooks"), each shown to fail on a bad notebook."""

import ast
import configparser
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import recorded
import reproduce
import smoke
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
COMMITTED = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))

OUTPUT_TYPES = {"text/plain", "text/html", "text/markdown", "text/latex", "image/png"}
# "exact": nbval compares text, as every processor prints these numbers so (a closed form, a count, what was recorded);
# "nbval-ignore-output": numbers that are compared within the tolerances of recorded.py.
COMPARED = {"exact", "nbval-ignore-output"}
TAGS = {"parameters", "checks"} | COMPARED
VERDICTS = {"reproduced", "partly reproduced", "not reproduced", "refuted", "not testable"}
LOCAL_PATH = re.compile(r"(?<![\w.~/<-])/(?:work|home|tmp|root|Users|private|mnt|opt|usr|var|content)\b|\b[A-Z]:\\")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")


# --- the checks: each takes a notebook and asserts one thing ----------------------------------------------------------


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook):
    """Sources and textual outputs."""
    yield from (cell.source for cell in notebook.cells)
    for output in outputs(notebook):
        yield output.get("text", "")
        yield from (str(data) for kind, data in output.get("data", {}).items() if not kind.startswith("image/"))


def is_valid(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True), "cells have ids from format 4.5 on"


def has_the_common_kernel(notebook):
    assert notebook.metadata.kernelspec == reproduce.KERNEL


def has_metadata_that_never_changes(notebook):
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "lgi"}
    assert "version" not in notebook.metadata.get("language_info", {})
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.metadata


def was_executed_once_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def has_no_error_and_no_warning(notebook):
    assert [output.ename for output in outputs(notebook) if output.output_type == "error"] == []
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []


def has_plain_outputs(notebook):
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert kinds <= OUTPUT_TYPES, f"{kinds - OUTPUT_TYPES}: widgets freeze, and only PNG is not compared by nbval"
    assert not any("\r" in output.get("text", "") for output in outputs(notebook)), "a progress bar"


def names_no_place_of_this_machine(notebook):
    assert [text for text in texts(notebook) if LOCAL_PATH.search(text)] == []


def prints_no_memory_address(notebook):
    assert [output for output in outputs(notebook) if ADDRESS.search(json.dumps(output.get("data", output)))] == []


def says_how_its_numbers_are_compared(notebook):
    for cell in code_cells(notebook):
        numbers = [text for text in recorded.shown(cell.outputs).values() if re.search(r"\d", text)]
        said = COMPARED.intersection(cell.metadata.get("tags", []))
        assert len(said) == 1 or not (said or numbers), f"cell {cell.id} shows {numbers}: one tag of {COMPARED}"


def has_parameters_that_papermill_reads(notebook):
    (cell,) = tagged(notebook, "parameters")
    assert cell is code_cells(notebook)[0], "injection comes after this cell: nothing may run before"
    lines = cell.source.splitlines()
    assert 1 <= len(lines) <= 12
    declared = {}
    for line in lines:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.AnnAssign), f"expected 'name: type = value  # help', got {line!r}"
        assert re.search(r"\S  # \S", line), f"no '  # help' in {line!r}"
        declared[statement.target.id] = (ast.unparse(statement.annotation), ast.literal_eval(statement.value))
    seen = papermill.inspect_notebook(notebook)
    assert {name: parameter["inferred_type_name"] for name, parameter in seen.items()} == {
        name: annotation for name, (annotation, _) in declared.items()
    }
    assert not any("#" in parameter["default"] + parameter["help"] for parameter in seen.values()), "a second '#'"
    for name, (annotation, value) in declared.items():
        assert annotation.partition("[")[0] in reproduce.TYPES, f"{name}: a run cannot check {annotation}"
        assert value is None or reproduce.conforms(value, annotation), f"{name}: {value!r} is no {annotation}"
    assert declared.get("run") == ("str", "default")
    assert declared.get("device") == ("str", "auto")


def has_the_size_of_a_chapter(notebook):
    assert 20 <= len(notebook.cells) <= 35


def has_short_code_cells(notebook):
    assert [cell.source for cell in code_cells(notebook) if len(cell.source.splitlines()) > 25] == []


def has_no_empty_cell(notebook):
    assert all(cell.source.strip() for cell in notebook.cells)


def begins_with_its_title(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert re.match(r"# \S", notebook.cells[0].source)


def assertions(cells):
    """Asserts in code cells; none is a constant, or the tuple that parentheses around it and its message make."""
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
    assert [ast.unparse(node) for node in nodes if isinstance(node.test, ast.Constant | ast.Tuple)] == []
    return nodes


def checks_itself(notebook):
    assert assertions(tagged(notebook, "checks")), "no assert in a cell tagged checks"


def has_the_closing_sections(notebook):
    headings = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    for name in ("Deviations", "Exercises"):
        assert any(re.match(rf"#+ .*\b{name}\b", line) for line in headings), f"no section {name}"


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def section(notebook, heading):
    """Text of a section up to the next heading of its level."""
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", prose(notebook), re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found[1].strip()


def has_verdicts_by_rule(notebook):
    """README, "Results", says what the words mean."""
    for output in outputs(notebook):
        table = output.get("data", {}).get("text/markdown", "")
        if table.startswith("| claim |"):
            titles, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
            assert titles == ["claim", "paper", "criterion", "measured", "verdict"]
            assert {len(row) for row in rows} == {5}, "a cell is empty, or has a bar in it"
            assert {row[-1] for row in rows} <= VERDICTS, "another word for a verdict"


def says_what_one_learns(notebook):
    for fact in ("Paper", "Run time"):
        assert re.search(rf"^\*\*{fact}:\*\* ", notebook.cells[0].source, re.MULTILINE)
    assert re.search(r"\*\*Paper:\*\*[^\n]*(\n[^\n]+)*\]\(https://", notebook.cells[0].source), "no link to the paper"
    goals = notebook.cells[0].source.partition("**After this notebook you can**")[2]
    assert 3 <= len(re.findall(r"^[-*] \S", goals, re.MULTILINE)) <= 4
    assert section(notebook, "What you should now be able to say")


def leads_on(notebook):
    line = re.compile(r"^(?=.*\[Glossary\]\(glossary\.md\))(Previous|Next): \[.+$", re.MULTILINE)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]  # 07 ends with its widgets
    first, last = (line.findall(text) for text in (texts[0], texts[-1]))
    assert len(first) == len(last) == 1, "Previous and Next in the first text and in the last one"


def has_references(notebook):
    items = re.findall(r"^(?:[-*]|\d+\.) (\S.+(?:\n +\S.*)*)", section(notebook, "References"), re.MULTILINE)
    assert items
    assert any("https://" in item for item in items)
    assert all(re.search(r"\b(19|20)\d\d\b", item) for item in items), "a work without its year"


def explains_its_code(notebook):
    """A reason or an idea in most code cells, in a line of its own."""
    cells = [cell for cell in code_cells(notebook)[1:] if len(cell.source.splitlines()) > 5]
    commented = [cell for cell in cells if re.search(r"^ *# \S", cell.source, re.MULTILINE)]
    assert 2 * len(commented) >= len(cells), f"{len(commented)} of {len(cells)} cells of over five lines have a comment"


def links_the_source(notebook):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(notebook)) if "://" not in link]
    assert [link for link in links if link and not (NOTEBOOKS / link).exists()] == [], "links to nothing"
    assert any(link.startswith("../lgi/") for link in links), "no link to the source of a name of lgi"


def is_small(notebook):
    assert len(nbformat.writes(notebook).encode()) < 1.5e6


def has_known_tags(notebook):
    assert {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])} <= TAGS


# --- each check fails on a bad notebook ------------------------------------------------------------------------------

PARAMETERS = """\
run: str = "default"  # name of the run
device: str = "auto"  # cpu, cuda or auto
sizes: list[int] = [1, 2]  # of the layers"""
NEXT = "Previous: [01 Train](01_train_vaes.ipynb) · [Glossary](glossary.md)"
TITLE = f"""\
# Title

**Paper:** section 2 of [the paper](https://a.b). **Figure:** 1.

**Run time:** none.

**After this notebook you can**

- draw,
- measure,
- say.

{NEXT}"""
TABLE = """\
| claim | paper | criterion | measured | verdict |
|---|---|---|---|---|
| it is three | 3 | equal | 3 | reproduced |"""


def good():
    """A notebook that passes every check."""
    cells = [
        new_markdown_cell(TITLE),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        *[new_markdown_cell("Why, in words, a/b and 3 </p>, by [`lgi.slerp`](../lgi/spline.py).") for _ in range(14)],
        new_code_cell(
            "# Three, the least that is asked for.\nx = 3\nif x:\n    pass\n\nx",
            outputs=[
                new_output("display_data", data={"text/markdown": TABLE}),
                new_output("execute_result", data={"text/plain": "3", "image/png": "QUJD"}, execution_count=2),
                new_output("stream", name="stdout", text="L = 1.23\n"),
            ],
            metadata={"tags": ["exact"]},
        ),
        new_code_cell("assert x == 3", metadata={"tags": ["checks"]}),
        new_markdown_cell("## Deviations from the paper"),
        new_markdown_cell("## What you should now be able to say\n\nThree.\n\n## Exercises\n1. Draw it."),
        new_markdown_cell(f"## References\n\n- Somebody, *Title*, 2021, [arXiv](https://a.b).\n\n{NEXT}"),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    metadata = {"kernelspec": reproduce.KERNEL, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def set_cell(index, **fields):
    return lambda notebook: notebook.cells[index].update(fields)


def add_output(**fields):
    output = nbformat.from_dict(fields)
    return lambda notebook: notebook.cells[16].outputs.append(output)


def add_display(kind, data="x"):
    return add_output(output_type="display_data", data={kind: data}, metadata={})


BAD = [
    (is_valid, lambda notebook: notebook.cells[0].update(cell_type="prose")),
    (is_valid, lambda notebook: (notebook.update(nbformat_minor=4), [cell.pop("id") for cell in notebook.cells])),
    (has_the_common_kernel, lambda notebook: notebook.metadata.kernelspec.update(name="my-environment")),
    (has_metadata_that_never_changes, lambda notebook: notebook.metadata.update(papermill={"duration": 3})),
    (has_metadata_that_never_changes, lambda notebook: notebook.metadata.language_info.update(version="3.11.7")),
    (has_metadata_that_never_changes, lambda notebook: notebook.cells[1].metadata.update(papermill={"duration": 3})),
    (has_metadata_that_never_changes, lambda notebook: notebook.cells[1].metadata.update(execution={"iopub": "2024"})),
    (was_executed_once_from_top_to_bottom, set_cell(1, execution_count=None)),
    (was_executed_once_from_top_to_bottom, set_cell(16, execution_count=7)),
    (has_no_error_and_no_warning, add_output(output_type="error", ename="ValueError", evalue="", traceback=[])),
    (has_no_error_and_no_warning, add_output(output_type="stream", name="stderr", text="a warning")),
    (has_plain_outputs, add_display("application/vnd.jupyter.widget-view+json", {"model_id": "1"})),
    (has_plain_outputs, add_display("image/svg+xml")),
    (has_plain_outputs, add_output(output_type="stream", name="stdout", text=" 10%\r 20%")),
    (names_no_place_of_this_machine, set_cell(0, source="# Title\nSee /home/me/data.")),
    (names_no_place_of_this_machine, set_cell(16, source='open("/work/main/data/x")')),
    (names_no_place_of_this_machine, set_cell(16, source=r'open("C:\data")')),
    (names_no_place_of_this_machine, add_output(output_type="stream", name="stdout", text="in /tmp/x.png")),
    (names_no_place_of_this_machine, add_display("text/plain", "PosixPath('/root/runs')")),
    (names_no_place_of_this_machine, add_display("text/html", "<a href='/Users/me'>")),
    (prints_no_memory_address, add_display("text/plain", "<object at 0x7f00aa11bb22>")),
    (prints_no_memory_address, add_output(output_type="stream", name="stdout", text="<object at 0x7f00aa11bb22>")),
    (says_how_its_numbers_are_compared, set_cell(16, metadata=nbformat.from_dict({}))),
    (says_how_its_numbers_are_compared, set_cell(16, metadata=nbformat.from_dict({"tags": sorted(COMPARED)}))),
    (has_parameters_that_papermill_reads, set_cell(1, metadata=nbformat.from_dict({}))),
    (has_parameters_that_papermill_reads, set_cell(17, metadata=nbformat.from_dict({"tags": ["parameters"]}))),
    (has_parameters_that_papermill_reads, lambda notebook: notebook.cells.insert(1, new_code_cell("import os"))),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\nseed = 0  # of the draws")),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\nseed: int = 0")),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\nseed: int = 2 * 3  # of the draws")),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\nseed: int | None = 0  # of the draws")),
    (
        has_parameters_that_papermill_reads,
        set_cell(1, source=PARAMETERS + "\nseed: int = 0  # of the draws, default=0"),
    ),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\nseed: int = 0.5  # of the draws")),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + '\nmark: str = "a  # b"  # of the lines')),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\nseed: Seed = 0  # of the draws")),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS.replace('"default"', '"mine"'))),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS.replace('"auto"', '"cuda"'))),
    (has_parameters_that_papermill_reads, set_cell(1, source=PARAMETERS + "\np: int = 0  # help" * 10)),
    (has_the_size_of_a_chapter, lambda notebook: notebook.cells.__delitem__(slice(2, 4))),
    (has_the_size_of_a_chapter, lambda notebook: notebook.cells.extend(16 * [new_markdown_cell("more")])),
    (has_short_code_cells, set_cell(16, source="x = 3\n" * 26)),
    (has_no_empty_cell, set_cell(16, source=" \n")),
    (is_valid, lambda notebook: notebook.cells[3].update(id=notebook.cells[2].id)),
    (begins_with_its_title, set_cell(0, source="Some text\n# Title")),
    (begins_with_its_title, lambda notebook: notebook.cells.pop(0)),
    (checks_itself, set_cell(17, metadata=nbformat.from_dict({}))),
    (checks_itself, set_cell(17, source="print('all is well')")),
    (checks_itself, set_cell(17, source="assert True")),
    (checks_itself, set_cell(17, source="assert (x == 4, 'x is 4')")),
    (has_the_closing_sections, set_cell(18, source="Deviations")),
    (has_the_closing_sections, set_cell(19, source="## Outlook")),
    (has_verdicts_by_rule, add_display("text/markdown", TABLE.replace("reproduced", "it runs"))),
    (has_verdicts_by_rule, add_display("text/markdown", TABLE.replace("| equal ", "|"))),
    (has_verdicts_by_rule, add_display("text/markdown", TABLE.replace("criterion", "rule"))),
    (says_what_one_learns, set_cell(0, source=TITLE.replace("](https://a.b)", "]"))),
    (says_what_one_learns, set_cell(0, source=TITLE.replace("- say.", ""))),
    (says_what_one_learns, set_cell(19, source="## Exercises\n1. Draw it.")),
    (leads_on, set_cell(0, source=TITLE.replace(NEXT, ""))),
    (leads_on, set_cell(20, source="## References")),
    (has_references, set_cell(20, source=f"## References\n\n{NEXT}")),
    (has_references, set_cell(20, source="## References\n\n- Somebody, [arXiv](https://a.b)")),
    (explains_its_code, set_cell(16, source="x = 3\n" * 6)),
    (links_the_source, lambda notebook: [cell.update(source="Why?") for cell in notebook.cells[2:16]]),
    (links_the_source, set_cell(2, source="[gone](../lgi/gone.py)")),
    (is_small, add_display("image/png", "A" * 1_500_000)),
    (has_known_tags, set_cell(16, metadata=nbformat.from_dict({"tags": ["raises-exception"]}))),
    (has_known_tags, set_cell(16, metadata=nbformat.from_dict({"tags": ["nbval-ignore-outputs"]}))),
]
# Each check has a bad notebook.
CHECKS = list(dict.fromkeys(check for check, _ in BAD))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_good_notebook_passes(check):
    check(good())


@pytest.mark.parametrize(("check", "spoil"), BAD, ids=[f"{i}-{check.__name__}" for i, (check, _) in enumerate(BAD)])
# nbformat gives some invalid notebooks a warning before the error that is expected here.
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
def test_bad_notebook_is_found(check, spoil):
    notebook = copy.deepcopy(good())
    spoil(notebook)
    with pytest.raises((AssertionError, ValueError, nbformat.ValidationError, nbformat.warnings.DuplicateCellId)):
        check(notebook)


def test_nbval_takes_out_only_what_it_should():
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "tests" / "nbval.cfg")
    assert configuration.sections()
    assert all(section["replace"].strip() for section in map(configuration.__getitem__, configuration.sections()))
    text = "<object at 0x7f00aa11bb22>, L = 1.23, 0x10"
    for section in configuration.sections():
        text = re.sub(configuration[section]["regex"], configuration[section]["replace"], text)
    assert text == "<object at ADDRESS>, L = 1.23, 0x10"


# --- the committed notebooks -----------------------------------------------------------------------------------------


def test_series_is_numbered_without_a_gap():
    assert COMMITTED
    assert [path.name[:2] for path in COMMITTED] == [f"{i:02d}" for i in range(1, len(COMMITTED) + 1)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_notebook(path, check):
    check(nbformat.read(path, nbformat.NO_CONVERT))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_variant_fits_its_notebook(path):
    variants = [file.stem.split("_", 1)[1] for file in sorted((NOTEBOOKS / "params").glob(f"{path.name[:2]}_*.yaml"))]
    assert "smoke" in variants
    for variant in variants:
        assert reproduce.plan([path], variant, {}, variant)[0][1]["run"] == variant


@pytest.mark.slow
def test_smoke_run_of_the_series(tmp_path):
    command = [sys.executable, str(NOTEBOOKS / "reproduce.py"), "--params", "smoke"]
    environment = {**os.environ, "LGI_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs" / "smoke" / "summary.json").read_text())
    assert [record["notebook"] for record in summary["notebooks"]] == [path.stem for path in COMMITTED]
    assert all(record["headline"] for record in summary["notebooks"])
    found = smoke.differences(smoke.results_of(tmp_path / "runs" / "smoke"))
    assert not found, "\n".join([*found, smoke.REMEDY])
