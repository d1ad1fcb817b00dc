"""The book made from the committed notebooks: its text, and how headless Chromium shows it."""

import base64
import hashlib
import io
import itertools
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import book
import nbformat
import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_recorded import COMMITTED

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the full edition."""
    folder = tmp_path_factory.mktemp("site") / "book"
    assert book.main(["--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Parsed pages by name."""
    return {path.name: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in site.glob("*.html")}


def equations(path):
    """TeX of the equations in a notebook's Markdown, found in another way than the book does."""
    cells = nbformat.read(path, as_version=4).cells
    for text in (cell.source for cell in cells if cell.cell_type == "markdown"):
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        for display, inline in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", prose, flags=re.DOTALL):
            yield re.sub(r"\\tag\{.*?\}", "", display or inline).strip()


# --- what is written -------------------------------------------------------------------------------------------------


def test_every_notebook_has_its_page(pages):
    expected = {f"{path.stem}.html" for path in COMMITTED} | {"index.html"}
    expected |= {"instructor.html"} if (NOTEBOOKS / "instructor.md").exists() else set()
    expected |= {"glossary.html"}
    assert {name for name in pages if not name.startswith("lgi_")} == expected
    assert "01_train_vaes.html" in expected


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_equation_is_converted(pages, path):
    page = pages[f"{path.stem}.html"]
    shown = [formula["alttext"] for formula in page.select(".prose math")]
    assert shown == list(equations(path))
    assert all(formula.get_text(strip=True) for formula in page("math"))
    raw = page.find_all(string=re.compile(r"\$|\\[a-zA-Z(\[]"))
    assert [text for text in raw if not text.find_parent(["code", "pre", "script"])] == []


def test_the_font_has_what_equations_are_drawn_with(site, pages):
    (data,) = re.findall(r"url\(data:font/woff;base64,(.*?)\)", (site / "book.css").read_text())
    font = TTFont(io.BytesIO(base64.b64decode(data)))
    drawn = {"√", "𝑧", "𝛾", "ℎ"}.union(*(formula.get_text() for page in pages.values() for formula in page("math")))
    # Spaces, and the invisible characters that apply a function and choose a variant.
    drawn -= set(" \n\u00a0\u2061\ufe00")
    assert [character for character in drawn if ord(character) not in font.getBestCmap()] == []
    assert "MATH" in font
    assert "STIX" in font["name"].getDebugName(0), "the font's licence wants its copyright notice kept"


def test_numbered_equations_have_their_number(pages):
    numbers = [number.get_text() for number in pages["02_metric_fields.html"].select(".equation > .number")]
    assert numbers == ["(1)", "(2)", "(3)", "(4)"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_figure_is_there_and_described(site, pages, path):
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    images = pages[f"{path.stem}.html"].select("figure.output img")
    assert len(images) == len(drawn)
    for image in pages[f"{path.stem}.html"]("img"):
        assert (site / image["src"]).read_bytes().startswith(b"\x89PNG")
        assert len(image["alt"]) > 20, image
        assert "$" not in image["alt"]
    assert all(len(image["alt"].partition("): ")[2]) > 20 for image in images), "more than where it stands"
    assert len({image["alt"] for image in images}) == len(images)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_cell_and_output_is_there(pages, path):
    cells = nbformat.read(path, 4).cells
    shown = pages[f"{path.stem}.html"].select("article > .cell")
    assert [("code" in cell["class"]) for cell in shown] == [cell.cell_type == "code" for cell in cells]
    for cell, there in zip(cells, shown, strict=True):
        if cell.cell_type == "code":
            assert there.select_one(".highlight").get_text().strip() == cell.source.strip()
            # A caption that the cell has written belongs to its figure.
            captions = [o for o in cell.outputs if o.get("data", {}).get("text/markdown", "").startswith("*Fig")]
            assert len(there.select(".output")) == len(cell.outputs) - len(captions)
            assert all(output.get_text(strip=True) or output("img") for output in there.select(".output"))


def test_captions_stand_below_their_figures(pages):
    captions = [caption.get_text() for caption in pages["05_two_model_comparison.html"]("figcaption")]
    assert [caption[:8] for caption in captions] == ["Figure 5", "Figure 6", "Figure 7", "Figure 8"]
    assert not re.search(r"<em>Fig", str(pages["05_two_model_comparison.html"]))


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site, pages):
    inside = 0
    for name, page in pages.items():
        ids = [element["id"] for element in page(id=True)]
        assert len(ids) == len(set(ids)), name
        for link in page("a", href=True):
            url = urlsplit(link["href"])
            if url.scheme in ("http", "https"):
                continue
            assert not url.scheme, link
            assert not url.path or (site / url.path).is_file(), link
            assert not url.fragment or pages[url.path or name].find(id=url.fragment), link
            inside += 1
        for element in page(["img", "script", "link", "iframe", "source", "object"]):
            address = urlsplit(element.get("src") or element.get("href") or "")
            assert address.scheme in ("", "data"), element
            assert not address.netloc, element
    assert inside > 100
    assert set(re.findall(r"url\(([a-z]+:)", (site / "book.css").read_text())) == {"data:"}
    assert "@import" not in (site / "book.css").read_text()


def test_the_policy_of_a_page_allows_its_own_script_alone(pages):
    for name, page in pages.items():
        policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
        allowed = dict(part.strip().split(" ", 1) for part in policy["content"].split(";"))
        (script,) = page("script")
        digest = base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()
        assert allowed["script-src"] == f"'sha256-{digest}'", name
        assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'", name
        assert not any(word in policy["content"] for word in ("*", "http", "unsafe-eval", "unsafe-hashes")), name
        # It stands before everything that it is about; attributes that are scripts would not run.
        assert policy.find_all_previous(["script", "link", "style", "img"]) == [], name
        assert not [element for element in page(True) if any(key.startswith("on") for key in element.attrs)], name


def test_the_former_book_stays_when_the_new_one_is_interrupted(site, tmp_path, monkeypatch):
    folder = tmp_path / "book"
    shutil.copytree(site, folder)
    real = Path.rename

    def rename(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(book.Book, "write", lambda self: (self.folder / "book.css").touch())
    with pytest.raises(KeyboardInterrupt):
        book.build(NOTEBOOKS, "student", folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in site.iterdir()}


def test_pages_know_each_other(pages):
    series = [name for name in pages if re.match(r"\d\d_(?!solutions)", name)]
    for before, after in itertools.pairwise(sorted(series)):
        assert pages[before].find("a", rel="next")["href"] == after
        assert pages[after].find("a", rel="prev")["href"] == before
    for name, page in pages.items():
        assert page.find("nav").find("a", attrs={"aria-current": "page"})["href"] == name
        contents = [link.get_text() for link in page.select("nav ol ol a")]
        assert contents == [heading.get_text() for heading in page.select("h2")]
        assert len(page("h1")) == 1
        assert page.title.get_text().startswith(page.h1.get_text())


def test_index_shows_the_series_and_its_results(pages):
    text = pages["index.html"].get_text()
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        assert cells[0].source.splitlines()[0][2:] in text
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        has_results = any(output.get("data", {}).get("text/markdown", "").startswith("| claim |") for output in outputs)
        assert has_results == bool(pages["index.html"].select_one(f'article a[href="{path.stem}.html#results"]'))
    assert "one CPU core" in text


def test_parameters_and_checks_are_pointed_out(pages):
    for name, page in pages.items():
        if re.match(r"\d\d_(?!solutions)", name):
            assert "--only " + name[:2] in page.select_one(".cell.parameters .hint").get_text()
            assert page.select_one(".cell.checks .hint")


def test_every_table_scrolls_by_itself(pages):
    tables = [table for page in pages.values() for table in page("table")]
    assert len(tables) > 10
    assert all(table.parent["class"] == ["wide"] for table in tables)


# --- small books -----------------------------------------------------------------------------------------------------


def small(tmp_path, *extra, solutions=(), instructor=None):
    """Folder of a series of one notebook, as `main` takes it, and the command that makes its book."""
    folder = tmp_path / "a folder" / "notebooks"
    (folder / "solutions").mkdir(parents=True)
    (folder.parent / "README.md").write_text("# Title\n\nWhat it is.\n")
    write(folder / "01_first.ipynb", new_markdown_cell("# 01 · First\n\nWhy?\n\n**Run time:** a minute."), *extra)
    for name, cell in dict(solutions).items():
        write(folder / "solutions" / name, cell)
    if instructor:
        (folder / "instructor.md").write_text(instructor)
    return ["--notebooks", str(folder), "--output", str(tmp_path / "out" / "book")]


def write(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (new_markdown_cell("[a](02_second.ipynb)"), "leads nowhere"),
        (new_markdown_cell("[a](#nothing)"), "not there"),
        (new_markdown_cell("[a](01_first.ipynb#nothing)"), "not there"),
        (new_markdown_cell(r"$\nonsense{x}$"), "cannot convert the equation"),
        (new_markdown_cell("![a](https://example.org/a.png)"), "from the network"),
        (new_markdown_cell("![](../README.md)"), "no description"),
        (new_code_cell("1"), "without outputs"),
        (new_code_cell("1", execution_count=1, outputs=[new_output("error", ename="E", evalue="")]), "an error in"),
    ],
)
def test_an_unsound_book_is_refused_and_the_former_stays(tmp_path, capsys, cell, message):
    command = small(tmp_path)
    assert book.main(command) == 0
    former = (tmp_path / "out" / "book" / "01_first.html").read_bytes()
    write(Path(command[1]) / "01_first.ipynb", new_markdown_cell("# 01 · First\n\nOther."), cell)
    assert book.main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "01_first.ipynb" in error
    assert (tmp_path / "out" / "book" / "01_first.html").read_bytes() == former
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["book"]


def test_a_book_is_replaced_whole_and_nothing_else_is(tmp_path, capsys):
    command = small(tmp_path)
    assert book.main(command) == 0
    (tmp_path / "out" / "book" / "00_gone.html").touch()
    assert book.main(command) == 0
    assert not (tmp_path / "out" / "book" / "00_gone.html").exists()
    (tmp_path / "out" / "book" / "book.css").unlink()
    assert book.main(command) == 2
    assert "not a book" in capsys.readouterr().err
    assert (tmp_path / "out" / "book" / "index.html").exists()


def test_student_edition_has_no_solutions_and_no_links_to_them(tmp_path):
    exercises = new_markdown_cell("## Exercises\n\nOne. See [the answer](solutions/01_solutions.ipynb#one).")
    answers = new_markdown_cell("# Answers\n\nTo [01](../01_first.ipynb#Exercises).\n\n## One\n\nSECRET")
    page = "# Teaching\n\n[Answers](solutions/01_solutions.ipynb), [licence](../README.md)"
    command = small(tmp_path, exercises, solutions={"01_solutions.ipynb": answers}, instructor=page)
    folder = tmp_path / "out" / "book"
    assert book.main(command) == 0
    assert {path.name for path in folder.glob("*.html")} == {
        "index.html", "01_first.html", "01_solutions.html", "instructor.html",
    }  # fmt: skip
    first = BeautifulSoup((folder / "01_first.html").read_text(), "html.parser")
    assert first.select_one(".prose a[href='01_solutions.html#one']")
    assert first.select_one(".twin a[href='01_solutions.html']")
    solution = BeautifulSoup((folder / "01_solutions.html").read_text(), "html.parser")
    assert solution.select_one(".prose a[href='01_first.html#exercises']")
    assert book.main([*command, "--edition", "student"]) == 0
    assert {path.name for path in folder.glob("*.html")} == {"index.html", "01_first.html"}
    text = (folder / "01_first.html").read_text()
    assert "the answer" in text
    assert "solutions" not in text
    assert not any("SECRET" in path.read_text() for path in folder.glob("*.html"))


def test_student_edition_has_exercises_to_fill_in(tmp_path):
    cells = [new_markdown_cell("# 01 · Solutions"), new_markdown_cell("## Exercise 1\n\n> 1. Count.\n\nSECRET")]
    cells.append(new_code_cell("n = 'SECRET'\nassert n", execution_count=1))
    command = small(tmp_path)
    write(Path(command[1]) / "solutions" / "01_solutions.ipynb", *cells)
    assert book.main([*command, "--edition", "student"]) == 0
    out = tmp_path / "out" / "book"
    page = BeautifulSoup((out / "01_exercises.html").read_text(), "html.parser")
    (link,) = page.select(".twin a[download]")
    assert [cell.source for cell in nbformat.read(out / link["href"], 4).cells if cell.cell_type == "code"] == [
        "# Compute: n\nraise NotImplementedError", "assert n"
    ]  # fmt: skip
    first = BeautifulSoup((out / "01_first.html").read_text(), "html.parser")
    assert first.select_one(".twin a[href='01_exercises.html']")
    assert not any("SECRET" in path.read_text() for path in out.rglob("*.*") if path.suffix in (".html", ".ipynb"))


def test_the_glossary_of_the_series():
    terms = re.split(r"^## ", (NOTEBOOKS / "glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert 25 <= len(terms) <= 40
    names = [term.partition("\n")[0] for term in terms]
    assert names == sorted(set(names), key=str.lower)
    assert all(re.search(r"\(\[\d\d\]\(\d\d_\w+\.ipynb\)\)$", term.strip()) for term in terms)


def test_modules_that_are_linked_and_the_glossary_have_their_pages(tmp_path):
    links = "[`lgi.shorten`](../lgi/solver/shortening.py), [`lgi`](../lgi/__init__.py), [word](glossary.md#a-word)"
    command = small(tmp_path, new_markdown_cell(links))
    folder, out = Path(command[1]), tmp_path / "out" / "book"
    (folder / "glossary.md").write_text("# Glossary\n\n## A word\n\nSee [01](01_first.ipynb).\n")
    (folder.parent / "lgi" / "solver").mkdir(parents=True)
    for name in ("__init__", "solver/shortening", "solver/other"):
        (folder.parent / "lgi" / f"{name}.py").write_text(f"name = '{name}'  # $x$ < 1\n")
    for edition in ("full", "student"):
        assert book.main([*command, "--edition", edition]) == 0
        first = BeautifulSoup((out / "01_first.html").read_text(), "html.parser")
        found = [link["href"] for link in first.select(".prose a") if not link.has_attr("class")]
        assert found == ["lgi_solver_shortening.html", "lgi___init__.html", "glossary.html#a-word"]
        module = BeautifulSoup((out / found[0]).read_text(), "html.parser")
        assert module.select_one(".highlight").get_text().strip() == "name = 'solver/shortening'  # $x$ < 1"
        assert module.h1.get_text() == "lgi/solver/shortening.py"
        assert not (out / "lgi_solver_other.html").exists()
    (folder.parent / "lgi" / "__init__.py").unlink()
    assert book.main(command) == 2


def test_headings_of_the_same_name_have_their_own_anchors(tmp_path):
    command = small(tmp_path, new_markdown_cell("## A, b?\n\n## A, b?\n\n[up](#A,-b?) and [down](#a-b-again)"))
    assert book.main(command) == 0
    page = BeautifulSoup((tmp_path / "out" / "book" / "01_first.html").read_text(), "html.parser")
    assert [heading["id"] for heading in page("h2")] == ["a-b", "a-b-again"]


# --- in a browser ----------------------------------------------------------------------------------------------------


FACTS = """async () => {
  for (const image of document.images) { image.loading = "eager"; await image.decode().catch(() => 0); }
  await document.fonts.ready;
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return (r + g + b) / 3; };
  const body = getComputedStyle(document.body), root = document.documentElement;
  const size = element => { const box = element.getBoundingClientRect(); return box.width * box.height; };
  const past = element => element.getBoundingClientRect().right > root.clientWidth + 1
    && !element.closest(".wide, pre, .equation, figure a");
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => parts(colour).slice(0, 3).map(v => v / 255)
    .map(v => v < 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  const ground = element => {
    const colour = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return parts(colour)[3] === 0 ? ground(element.parentElement) : colour;
  };
  const contrast = element => {
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))];
    return Math.max(a, b) / Math.min(a, b);
  };
  const speaks = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return {
    faint: [...document.querySelectorAll("body *")].filter(element => speaks(element) && contrast(element) < 4.5)
      .map(element => `${contrast(element)} ${element.outerHTML.slice(0, 100)}`),
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
    overflow: root.scrollWidth - root.clientWidth,
    past: [...document.querySelectorAll("main *")].filter(past).map(element => element.outerHTML.slice(0, 200)),
    ink: light(body.color), paper: light(body.backgroundColor),
    flat: [...document.querySelectorAll("math")].filter(formula => !size(formula)).length,
    font: !document.querySelector("math") || [...document.fonts].some(face => face.status === "loaded"),
    menu: getComputedStyle(document.getElementById("nav")).display,
  };
}"""


class Window:
    """A browser's window of a width, and what its pages complain about or want from elsewhere."""

    def __init__(self, new_page, width):
        self.page = new_page(viewport={"width": width, "height": 844}, is_mobile=width < 500)
        self.evaluate, self.complaints = self.page.evaluate, []
        tell = self.complaints.append
        self.page.on("console", lambda message: message.type in ("error", "warning") and tell(message.text))
        self.page.on("pageerror", lambda error: tell(str(error)))
        self.page.on("request", lambda request: request.url.startswith(("file:", "data:")) or tell(request.url))
        self.page.on("requestfailed", lambda request: tell(f"failed: {request.url}"))

    def open(self, path):
        self.page.goto(path.resolve().as_uri())

    def facts(self, scheme):
        self.page.emulate_media(color_scheme=scheme)
        return self.evaluate(FACTS)


@pytest.fixture
def window(new_page, request):
    """Window of the width that a test is given, else of a computer's."""
    window = Window(new_page, getattr(request, "param", 1280))
    yield window
    window.page.close()


on_a_phone = pytest.mark.parametrize("window", [390], indirect=True)


@pytest.mark.parametrize(("window", "menu"), [(390, "none"), (1280, "block")], indirect=["window"])
def test_pages_in_a_browser(site, window, menu):
    for path in sorted(site.glob("*.html")):
        window.open(path)
        light, dark = window.facts("light"), window.facts("dark")
        assert light["ink"] < 80 < 230 < light["paper"], path.name
        assert dark["ink"] > 180 > 60 > dark["paper"], path.name
        for facts in (light, dark):
            assert (facts["broken"], facts["overflow"], facts["past"], facts["flat"]) == ([], 0, [], 0), path.name
            assert facts["font"], path.name
            assert facts["faint"] == [], path.name
            assert facts["menu"] == menu
        assert window.complaints == [], path.name


def test_button_changes_the_scheme_for_all_pages(site, window):
    first, second = sorted(site.glob("*.html"))[:2]
    window.open(first)
    assert window.facts("light")["paper"] > 230
    window.page.click("header button:not(.menu)")
    assert window.facts("light")["paper"] < 60
    window.open(second)
    assert window.facts("light")["paper"] < 60


@on_a_phone
def test_menu_opens_and_closes_on_a_phone(site, window):
    window.open(site / "01_train_vaes.html")
    for button, shown in ((".menu", "block"), ("nav ol ol a", "none")):
        window.page.locator(button).first.click()
        assert window.facts("light")["menu"] == shown


@on_a_phone
def test_a_page_that_is_wrong_is_seen(site, window, tmp_path):
    page = (site / "02_metric_fields.html").read_text(encoding="utf-8")
    wrong = "<p style='width:900px'>wide</p><img src='gone.png'><script>nothing()</script>"
    (tmp_path / "wrong.html").write_text(page.replace("</article>", wrong + "</article>"), encoding="utf-8")
    window.open(tmp_path / "wrong.html")
    facts = window.facts("light")
    assert facts["broken"]
    assert facts["past"]
    assert facts["overflow"] > 0
    assert not facts["font"]
    # No script runs but the page's own.
    assert any("Content Security Policy" in complaint for complaint in window.complaints)
    assert any("gone.png" in complaint for complaint in window.complaints)
