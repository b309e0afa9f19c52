"""The site has all pages and all names, is built offline, and warns of nothing."""

import html
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import jaxiou

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PUBLIC = {
    name: value
    for name, value in vars(jaxiou).items()
    if name[0] != "_" and not inspect.ismodule(value)
}
NEEDS = ["mkdocs", "material", "mkdocstrings_handlers.python"]
NEEDS += ["ipykernel", "jupytext", "nbclient", "matplotlib", "optax"]  # of notebooks
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.py"))


def navigation():
    """The pages of the navigation, in order."""
    text = (ROOT / "mkdocs.yml").read_text()
    block = re.search(r"^nav:\n((?:  .*\n)+)", text, re.MULTILINE)[1]
    return re.findall(r"[ ]([\w./-]+\.md)$", block, re.MULTILINE)


def test_every_page_is_in_the_navigation_once():
    sources = [*DOCS.rglob("*.md"), *(path.with_suffix(".md") for path in NOTEBOOKS)]
    pages = [str(path.relative_to(DOCS)) for path in sources]
    assert sorted(navigation()) == sorted(pages)


def test_every_public_name_is_on_one_page_of_the_reference():
    found = Counter()
    for page in DOCS.glob("api/*.md"):
        lines = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
        found.update(lines)
    modules = {name for name in found if inspect.ismodule(attribute(name))}
    found = {name: count for name, count in found.items() if name not in modules}
    assert found == {f"jaxiou.{name}": 1 for name in PUBLIC}


def attribute(name):
    """What stands behind a dotted name that begins with the package."""
    value = jaxiou
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_the_formula_on_the_page_of_the_idea_is_the_one_of_the_library():
    source = inspect.getsource(jaxiou.giou.formula)
    body = source.replace(jaxiou.giou.__doc__, "").replace('    """"""\n', "")
    assert (
        "\n".join(f"    {line}" for line in body.splitlines())
        in (DOCS / "idea.md").read_text()
    )


@pytest.mark.slow
def test_the_pictures_of_measures_are_those_of_the_measures(quick):
    path = DOCS / "make_measure_pictures.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    text = make.PAGE.read_text()
    assert text == make.build()
    shown = re.findall(r"!\[.*\]\((.*)\)", text)
    assert sorted(shown) == sorted(
        str(path.relative_to(DOCS)) for path in make.FOLDER.iterdir()
    )
    assert all((DOCS / name).read_bytes()[:4] == b"\x89PNG" for name in shown)


# The site itself


def missing():
    """What building needs and is not installed."""
    for name in NEEDS:
        try:
            if importlib.util.find_spec(name) is None:
                yield name
        except ModuleNotFoundError:
            yield name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and what was said."""
    lacking = list(missing())
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(["http_proxy", "https_proxy"], "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | nowhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return out


def pages(site):
    return {str(path.relative_to(site)): path for path in site.rglob("*.html")}


def test_the_site_loads_nothing_from_elsewhere(site):
    loads = (
        r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?(?:https?:)?//"
    )
    for name, path in pages(site).items():
        assert not re.search(loads, path.read_text()), name
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text())


def test_the_site_has_the_pages_and_what_they_link_to(site):
    for page in navigation():
        stem = Path(page).with_suffix("")
        place = stem.parent if stem.name == "index" else stem
        assert (site / place / "index.html").is_file(), page
    assert (site / "repository/benchmarks/results/roofline.png").is_file()
    assert "benchmarks/" in (site / "performance/index.html").read_text()
    assert not list(site.rglob("*.py")) and not list(site.rglob("runs.json"))


def test_notebooks_are_shown_with_what_they_print_and_draw(site):
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        folder = site / "notebooks" / path.stem
        page = (folder / "index.html").read_text()
        shown = re.findall(r'<img alt="[^"]+" src="(\d+\.png)"', page)
        assert len(shown) >= 2
        assert sorted(shown) == sorted(file.name for file in folder.glob("*.png"))
        assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in shown)
        # What is printed has no colours, code has.
        assert re.search(r"<pre><span></span><code>[^<]+</code>", page), path


def letters(text):
    """A text without spaces, markup and punctuation."""
    return "".join(c for c in text if c.isalnum())


def test_the_reference_has_every_docstring_whole(site):
    whole = "".join(path.read_text() for path in site.glob("api/*/index.html"))
    parts = re.split(r'<h\d id="(jaxiou\.[\w.]+)" class="doc doc-heading">', whole)
    entries = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name, value in PUBLIC.items():
        shown = html.unescape(re.sub(r"<[^>]*>", "", entries[f"jaxiou.{name}"]))
        shown = letters(shown)
        for line in inspect.cleandoc(value.__doc__).splitlines():
            if not re.fullmatch(r"[A-Z][A-Za-z ]+:", line):
                words = re.sub(r"^(    \w+:|\d+\.) ", "", line)  # of an item of a list
                assert letters(words) in shown, (name, line)


def test_measures_have_the_signature_they_are_called_with(site):
    page = (site / "api/measures/index.html").read_text()
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert "\ngiou(boxes1, boxes2)\n" in text
    assert "\nmpdiou(image_size)\n" in text
    assert "\nalpha_iou(*, alpha=3.0, base=iou)\n" in text
