"""Notebooks to fill in fail as they are, and pass with what the solutions hold, of which nothing is left in them."""

import re

import nbformat
import pytest
import student
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_solutions import COMMITTED

CELLS = [
    new_markdown_cell("# 01 · Solutions\n\nSECRET"),
    new_code_cell("import math\n\nn = 3"),
    new_markdown_cell("## Exercise 1\n\n> 1. *(easy)* Square it,\n>    and halve it.\n\nSECRET"),
    new_code_cell("secret = [k for k in range(n)]\nsquare, half = n**2, n / 2"),
    new_code_cell(
        "def root(x):\n    secret = x\n    return math.sqrt(secret)\n\n\n# A check.\nassert root(square) == n\nsquare"
    ),
    new_code_cell("print('SECRET')"),
    new_markdown_cell("**Answer.** SECRET"),
    new_markdown_cell("## Exercise 2\n\n> 2. Add them."),
    new_code_cell(
        "def add(x, y):\n    ### BEGIN SOLUTION\n    secret = x + y\n    return secret\n    ### END SOLUTION\n\n\n"
        "assert add(1, 2) == 3"
    ),
    new_code_cell("for total in (add(square, half),):\n    assert total == 10.5"),
]


def run(notebook):
    names = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_fails_until_it_is_filled_in_rightly():
    solutions = new_notebook(cells=CELLS)
    unsolved, solved = (student.fill_in(solutions, "01", solved=solved) for solved in (False, True))
    assert "secret" not in nbformat.writes(unsolved).lower()
    assert code(unsolved) == [
        "import math\n\nn = 3",
        "# Compute: root, square\nraise NotImplementedError",
        "# A check.\nassert root(square) == n\nsquare",
        "def add(x, y):\n    # Your code here.\n    raise NotImplementedError\n\n\nassert add(1, 2) == 3",
        "# Compute: half\nraise NotImplementedError",
        "for total in (add(square, half),):\n    assert total == 10.5",
    ]
    assert unsolved.cells[2].source == "## Exercise 1\n\n1. *(easy)* Square it,\n   and halve it."
    run(solved)
    todo = [cell for cell in unsolved.cells if student.TODO in cell.source and cell.cell_type == "code"]
    for cell in todo:
        with pytest.raises(NotImplementedError):
            run(unsolved)
        answers = ("root, square, half = math.sqrt, 8, 1.5", "def add(x, y):\n    return x + y", "half = 1.5")
        cell.source = answers[todo.index(cell)]
        if cell is todo[0]:
            with pytest.raises(AssertionError):
                run(unsolved)
            cell.source = cell.source.replace("8", "9")
    run(unsolved)


def test_cells_are_marked_for_nbgrader():
    notebook = student.fill_in(new_notebook(cells=CELLS), "01")
    nbformat.validate(notebook)
    marked = [(cell.metadata.tags, cell.metadata.nbgrader) for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert [tags for tags, _ in marked] == [
        ["solution"],
        ["test"],
        ["answer"],
        ["solution"],
        ["solution"],
        ["test"],
        ["answer"],
    ]
    assert len({about.grade_id for _, about in marked}) == len(marked)
    assert all(about.locked == (tags == ["test"]) for tags, about in marked)
    assert all(("points" in about) == about.grade for _, about in marked)


def test_without_exercises_there_is_nothing_to_fill_in():
    assert student.fill_in(new_notebook(cells=[new_markdown_cell("# 01")]), "01") is None


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_of_the_committed_solutions(path):
    """Filled in it is the solutions' code, all of it and in their order, of which it is known that it passes."""
    solutions = nbformat.read(path, 4)
    unsolved, solved = (student.fill_in(solutions, path.name[:2], solved=solved) for solved in (False, True))
    lines = [
        [line for source in code(each) for line in source.splitlines() if line.strip()] for each in (solutions, solved)
    ]
    assert lines[0] == lines[1]
    n_exercises = len(re.findall(r"^## Exercise \d+", "\n".join(cell.source for cell in solutions.cells), re.MULTILINE))
    fillings = [cell for cell in unsolved.cells if "solution" in cell.metadata.get("tags", [])]
    assert len(fillings) >= n_exercises
    assert all(student.TODO in cell.source for cell in fillings)
    assert not re.search(r"\*\*Answer\.\*\*|### (BEGIN|END) SOLUTION", nbformat.writes(unsolved))
    for cell in unsolved.cells:
        assert cell.cell_type != "code" or compile(cell.source, cell.id, "exec")
