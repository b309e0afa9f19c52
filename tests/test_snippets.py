"""Runs what is written to be copied: the examples in docstrings and in the pages."""

import doctest
import importlib
import inspect
import math
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import jaxiou

ROOT = Path(__file__).parents[1]
# Those in Chinese have the same code: tests/test_pages.py.
CHINESE = set((ROOT / "docs").rglob("*.zh-CN.md"))
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - CHINESE)]


def documented():
    """Name and docstring of all that is defined in jaxiou and has examples.

    The finder of `doctest` knows functions and classes; a measure is neither.
    """
    names = [m.name for m in pkgutil.walk_packages(jaxiou.__path__, "jaxiou.")]
    for module in map(importlib.import_module, ["jaxiou", *names]):
        entries = {module.__name__: module}
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__:
                entries[f"{module.__name__}.{name}"] = value
                if inspect.isclass(value):
                    members = vars(value).items()
                    entries |= {f"{module.__name__}.{name}.{k}": v for k, v in members}
        for name, value in entries.items():
            text = getattr(value, "__doc__", None)
            if isinstance(text, str) and ">>>" in text:
                yield pytest.param(name, text, id=name)


class Checker(doctest.OutputChecker):
    """Numbers with a point agree to a few ulp of float32: the last digit is XLA's."""

    NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")

    def check_output(self, want, got, flags):
        def split(text):
            numbers = [float(x) for x in self.NUMBER.findall(text)]
            return "".join(self.NUMBER.sub("#", text).split()), numbers

        (text, numbers), (text_got, numbers_got) = split(want), split(got)
        return text == text_got and all(
            math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7)
            for a, b in zip(numbers, numbers_got, strict=True)
        )


@pytest.mark.parametrize(("name", "text"), list(documented()))
def test_docstring(name, text):
    example = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    report = []
    doctest.DocTestRunner(Checker(), verbose=False).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize(
    ("got", "same"),
    [
        ("[0.4 1. ]", True),
        ("[0.40000004 1.        ]", True),
        ("[0.40001 1.]", False),
        ("[0.4 2.]", False),
        ("(0.4 1.)", False),
    ],
)
def test_outputs_compare_by_numbers(got, same):
    assert Checker().check_output("[0.4 1. ]\n", got + "\n", 0) is same


def test_every_public_function_has_an_example():
    names = {parameter.id.split(".")[-1] for parameter in documented()}
    public = {
        name
        for name, value in vars(jaxiou).items()
        if name[0] != "_" and callable(value) and not inspect.isclass(value)
    }
    assert public <= names, public - names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page):
    """Blocks of one page run one after the other and see what the former defined."""
    text = page.read_text()
    namespace = {"__name__": "page"}
    blocks = list(
        re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    )
    assert blocks or "```python" not in text
    # Pages are read by people whose JAX promotes ranks.
    with jax.numpy_rank_promotion("allow"):
        for block in blocks:
            # The line numbers of a traceback are those of the page.
            lines = "\n" * (text[: block.start(1)].count("\n"))
            exec(compile(lines + block[1], str(page), "exec"), namespace)
