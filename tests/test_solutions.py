"""Static tests of the solutions: every exercise quoted as it stands, answered, asserted; executed and clean."""

import copy
import re

import nbformat
import papermill
import pytest
import test_notebooks as series
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

COMMITTED = sorted((series.NOTEBOOKS / "solutions").glob("[0-9][0-9]_solutions.ipynb"))
# Whose exercises are for playing, without solutions.
UNSOLVED = {"07"}
EXERCISE = re.compile(r"^(\d+)\. .*?(?=^\d+\. |\Z)", re.MULTILINE | re.DOTALL)


def exercises(notebook):
    """Texts of the exercises at the end of a notebook of the series, by number."""
    text = next(cell.source for cell in reversed(notebook.cells) if re.search(r"^## Exercises$", cell.source, re.M))
    text = re.split(r"^## ", text.partition("## Exercises")[2], flags=re.MULTILINE)[0].strip()
    return {int(item[1]): item[0].strip() for item in EXERCISE.finditer(text)}


def sections(solutions):
    """Cells of each solution, by number of the exercise."""
    found = {}
    for cell in solutions.cells:
        if heading := re.match(r"## Exercise (\d+)$", cell.source.partition("\n")[0]):
            number = int(heading[1])
            assert number not in found, f"exercise {number} is solved twice"
            found[number] = []
        if found:
            found[number].append(cell)
    return found


def quoted(cell):
    """Text of the lines of a cell that begin with '>'."""
    return "\n".join(re.sub("^> ?", "", line) for line in cell.source.splitlines() if line.startswith(">"))


# --- the checks: each takes the solutions and the notebook that sets the exercises -----------------------------------


def solves_every_exercise(solutions, notebook):
    assert exercises(notebook)
    assert list(sections(solutions)) == list(exercises(notebook))


def quotes_every_exercise(solutions, notebook):
    assert {number: quoted(cells[0]) for number, cells in sections(solutions).items()} == exercises(notebook)


def asserts_every_answer(solutions, notebook):
    for number, cells in sections(solutions).items():
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert series.assertions(code), f"exercise {number}: nothing is asserted"


def answers_in_words(solutions, notebook):
    for number, cells in sections(solutions).items():
        prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for mark in ("**Answer.** ", "**What it teaches.** "):
            assert len(re.findall(rf"^{re.escape(mark)}\S", prose, re.M)) == 1, f"exercise {number}: no {mark}"


def shows_a_result_for_every_exercise(solutions, notebook):
    for number, cells in sections(solutions).items():
        assert any(cell.outputs for cell in cells if cell.cell_type == "code"), f"exercise {number} shows nothing"


def is_titled_like_its_notebook(solutions, notebook):
    number = notebook.cells[0].source[2:4]
    assert solutions.cells[0].source.startswith(f"# {number} · Solutions\n")


def writes_no_results(solutions, notebook):
    written = [
        cell.source for cell in series.code_cells(solutions) if re.search("record_results|save_figure", cell.source)
    ]
    assert written == [], "figures and results of a run are those of the series"


def has_parameters_that_papermill_reads(solutions, notebook):
    for cell in series.tagged(solutions, "parameters"):
        assert cell is series.code_cells(solutions)[0]
        assert list(papermill.inspect_notebook(solutions)) == [
            line.partition(":")[0] for line in cell.source.splitlines()
        ]


# --- each check fails on bad solutions -------------------------------------------------------------------------------


def good():
    """A notebook with two exercises, and its solutions."""
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# 03 · Curves"),
            new_markdown_cell("## Exercises\n\n1. *(easy)* Draw a curve\n   of $x^2$.\n2. *(hard)* Prove it: $1. 5$."),
        ]
    )
    output = nbformat.v4.new_output("stream", text="3")
    solutions = new_notebook(
        metadata={"kernelspec": series.reproduce.KERNEL},
        cells=[
            new_markdown_cell("# 03 · Solutions\n\nWords."),
            new_code_cell("recompute: bool = False  # anew", metadata={"tags": ["parameters"]}),
            new_markdown_cell("## Exercise 1\n\n> 1. *(easy)* Draw a curve\n>    of $x^2$.\n\nFirst,"),
            new_code_cell("x = 3\nassert x == 3\nx", outputs=[output]),
            new_markdown_cell("**Answer.** Three.\n\n**What it teaches.** To count."),
            new_markdown_cell("## Exercise 2\n\n> 2. *(hard)* Prove it: $1. 5$."),
            new_code_cell("assert x == 3, 'x is 3'\nx", outputs=[output]),
            new_markdown_cell("**Answer.** Done.\n\n**What it teaches.** To end."),
        ],
    )
    return solutions, notebook


def replace(index, old, new):
    def change(solutions):
        assert old in solutions.cells[index].source
        solutions.cells[index].source = solutions.cells[index].source.replace(old, new)

    return change


BAD = [
    (solves_every_exercise, lambda solutions: solutions.cells.__delitem__(slice(5, None))),
    (solves_every_exercise, replace(5, "## Exercise 2", "## Exercise 3")),
    (solves_every_exercise, replace(5, "## Exercise 2", "## Exercise 1")),
    (quotes_every_exercise, replace(2, "a curve", "the curve")),
    (quotes_every_exercise, replace(2, ">    of", "> of")),
    (quotes_every_exercise, replace(2, "> 1.", "1.")),
    (asserts_every_answer, replace(3, "assert x == 3", "print(x)")),
    (asserts_every_answer, replace(3, "assert x == 3", "assert True")),
    (asserts_every_answer, replace(6, "assert x == 3, 'x is 3'", "assert (x == 3, 'x is 3')")),
    (answers_in_words, replace(4, "**Answer.**", "Answer:")),
    (answers_in_words, replace(7, "**What it teaches.** To end.", "")),
    (shows_a_result_for_every_exercise, lambda solutions: solutions.cells[6].update(outputs=[])),
    (is_titled_like_its_notebook, replace(0, "03", "04")),
    (writes_no_results, replace(3, "x = 3", "artifacts.save_figure(figure, 'x')")),
    (has_parameters_that_papermill_reads, replace(1, "recompute: bool = False", "recompute: bool = x(a=False)")),
    (has_parameters_that_papermill_reads, lambda solutions: solutions.cells.insert(1, new_code_cell("import os"))),
]
# Each check has bad solutions.
CHECKS = list(dict.fromkeys(check for check, _ in BAD))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_good_solutions_pass(check):
    check(*good())


@pytest.mark.parametrize(("check", "spoil"), BAD, ids=[f"{i}-{check.__name__}" for i, (check, _) in enumerate(BAD)])
def test_bad_solutions_are_found(check, spoil):
    solutions, notebook = copy.deepcopy(good())
    spoil(solutions)
    with pytest.raises((AssertionError, ValueError)):
        check(solutions, notebook)


# --- the committed solutions -----------------------------------------------------------------------------------------

OF_A_CHAPTER = {
    *(series.has_parameters_that_papermill_reads, series.has_the_size_of_a_chapter, series.has_short_code_cells),
    *(series.begins_with_its_title, series.checks_itself, series.has_the_closing_sections),
    *(series.has_verdicts_by_rule, series.says_what_one_learns, series.leads_on, series.has_references),
    *(series.explains_its_code, series.links_the_source),
}
CLEAN = [check for check in series.CHECKS if check not in OF_A_CHAPTER]


def of_series(path):
    """The notebook whose exercises a file solves."""
    return next(other for other in series.COMMITTED if other.name[:2] == path.name[:2])


def test_every_notebook_has_solutions():
    solved = {path.name[:2] for path in COMMITTED}
    assert solved.isdisjoint(UNSOLVED)
    assert solved == {path.name[:2] for path in series.COMMITTED} - UNSOLVED


@pytest.mark.parametrize("check", CLEAN, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_solutions_are_clean(path, check):
    check(nbformat.read(path, nbformat.NO_CONVERT))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_solutions(path, check):
    check(nbformat.read(path, 4), nbformat.read(of_series(path), 4))
