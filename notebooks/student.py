"""Notebooks to fill in, made from the solutions: ``make book EDITION=student`` writes and shows them.

Of each exercise in ``solutions/NN_solutions.ipynb`` its statement and its checks stay. What computes the answer becomes
``raise NotImplementedError``: the notebook fails until the cell is filled in, and its checks fail until it is
filled in rightly. The rule, cell by cell:

- before the first ``## Exercise``: code stays as it is, the text is replaced by what to do;
- a heading ``## Exercise N``: the heading and the quoted statement (lines that begin with ``>``) stay;
- other text is taken out, and one cell for an answer in words comes at the end of the exercise;
- code between lines ``### BEGIN SOLUTION`` and ``### END SOLUTION`` is taken out, the rest of its cell stays;
- code of a cell without these marks is cut before its first statement that asserts something: what is above is taken
  out, what is below is a cell of checks; a cell that asserts nothing is taken out as a whole.

Markers and metadata are those of nbgrader, which can release, collect and grade these notebooks as they are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
TODO = "raise NotImplementedError"
HEADING = re.compile(r"## Exercise (\d+)\b.*")
INTRODUCTION = """\
# {number} · Exercises

Fill in the cells that say `raise NotImplementedError`, and delete that line. The cell below each checks your answer: it
fails until the answer is right. A comment lists the names that it needs. Work from top to bottom: an exercise may use
what an earlier one has computed."""


def _cell(kind: str, name: str, source: str) -> nbformat.NotebookNode:
    """A cell with nbgrader's metadata: a "solution" that students write, a "test", or an "answer" in words."""
    make = new_markdown_cell if kind == "answer" else new_code_cell
    graded = kind != "solution"
    about = {"grade": graded, "solution": kind != "test", "locked": kind == "test", "task": False, "schema_version": 3}
    about |= {"grade_id": name} | ({"points": 1} if graded else {})
    return make(source.strip("\n"), metadata={"nbgrader": about, "tags": [kind]})


def _assigned(node: ast.AST) -> Iterator[str]:
    """Names that code assigns, without those inside functions and comprehensions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif isinstance(child, ast.alias):
            yield child.asname or child.name.partition(".")[0]
        elif not isinstance(child, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield from _assigned(child)


def _read(source: str) -> list[str]:
    """Names that code reads, in the order of the text, without those that are its own."""
    tree = ast.parse(source)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    read = sorted((node.lineno, node.col_offset, node.id) for node in names if isinstance(node.ctx, ast.Load))
    return [name for name in dict.fromkeys(name for *_, name in read) if name not in own]


def _cut(source: str) -> tuple[str, str]:
    """Code before the first statement that asserts something, and code from there on."""
    for statement in ast.parse(source).body:
        if any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
            lines, first = source.splitlines(keepends=True), statement.lineno - 1
            # The comment above belongs to the check.
            while first and lines[first - 1].startswith("#"):
                first -= 1
            return "".join(lines[:first]), "".join(lines[first:])
    return source, ""


def _marked(source: str, *, solved: bool) -> str:
    """Code without what stands between the marks, or with it."""
    if solved:
        return source
    todo = rf"\1# Your code here.\n\1{TODO}\n"
    return re.sub(rf"^([ \t]*){BEGIN}\n.*?^[ \t]*{END}[^\n]*\n?", todo, source, flags=re.MULTILINE | re.DOTALL)


def _exercise(cells: list[nbformat.NotebookNode], open_: set[str], *, solved: bool) -> Iterator[nbformat.NotebookNode]:
    """The cells of one exercise; `open_` are names that solutions have assigned and no cell has asked for so far."""
    (heading, *text), number = cells[0].source.splitlines(), HEADING.match(cells[0].source)[1]
    statement = "\n".join(re.sub("^> ?", "", line) for line in text if line.startswith(">"))
    yield new_markdown_cell(f"{heading}\n\n{statement}")
    before, count = "", 0
    for cell in (cell for cell in cells[1:] if cell.cell_type == "code"):
        if BEGIN in cell.source:
            if before:
                yield _cell("solution", f"exercise-{number}-before-{count}", before if solved else TODO)
            yield _cell("solution", f"exercise-{number}-code-{count}", _marked(cell.source, solved=solved))
            before, count = "", count + 1
            continue
        answer, checks = _cut(cell.source)
        before += answer if answer.endswith("\n") else answer + "\n"
        if checks:
            open_ |= set(_assigned(ast.parse(before)))
            wanted = [name for name in _read(checks) if name in open_]
            open_ -= {*wanted, *_assigned(ast.parse(checks))}
            todo = f"# Compute: {', '.join(wanted)}\n{TODO}" if wanted else TODO
            yield _cell("solution", f"exercise-{number}-code-{count}", before if solved else todo)
            yield _cell("test", f"exercise-{number}-check-{count}", checks)
            before, count = "", count + 1
    open_ |= set(_assigned(ast.parse(before)))
    if before and solved:
        yield _cell("solution", f"exercise-{number}-rest", before)
    yield _cell("answer", f"exercise-{number}-words", "**Your answer:**")


def fill_in(solutions: nbformat.NotebookNode, number: str, *, solved: bool = False) -> nbformat.NotebookNode | None:
    """Notebook to fill in, or the same cells filled in; nothing if the solutions have no exercise."""
    starts = [
        i for i, cell in enumerate(solutions.cells) if HEADING.match(cell.source) and cell.cell_type == "markdown"
    ]
    if not starts:
        return None
    setting_up = [cell for cell in solutions.cells[: starts[0]] if cell.cell_type == "code"]
    cells = [new_markdown_cell(INTRODUCTION.format(number=number))]
    cells += [new_code_cell(cell.source, metadata=cell.metadata) for cell in setting_up]
    open_: set[str] = set()
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        cells += _exercise(solutions.cells[start:end], open_, solved=solved)
    for place, cell in enumerate(cells):
        cell.id = f"cell-{place}"  # the same each time
    kept = {name: value for name, value in solutions.metadata.items() if name in ("kernelspec", "language_info")}
    return new_notebook(cells=cells, metadata=kept)
