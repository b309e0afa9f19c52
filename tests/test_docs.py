"""The pages that are made from the package are up to date."""

import importlib.util
from pathlib import Path

import jaxiou

DOCS = Path(__file__).parents[1] / "docs"


def script():
    path = DOCS / "make_measures_table.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_measures_is_the_one_that_the_docstrings_make(monkeypatch):
    make = script()
    assert make.PAGE.read_text() == make.build()

    @jaxiou.measure
    def newcomer(a, b):
        """A measure of two lines.

        Newcomer = x - y.

        Args:
            boxes1: boxes.

        Reference:
            Nobody, 2026.
        """
        return a[0] - b[0]

    monkeypatch.setattr(jaxiou, "newcomer", newcomer, raising=False)
    row = "| `newcomer` | Newcomer = x - y. | (-∞, 1] | yes | yes | no | Nobody, 2026 |"
    assert row in make.build()


def test_every_measure_has_a_row():
    make = script()
    page = make.PAGE.read_text()
    for name, value in vars(jaxiou).items():
        family = hasattr(value, "measure_family")
        member = value(**make.PARAMETERS.get(name, {})) if family else value
        if isinstance(member, jaxiou.Measure) and member.coordinates == 4:
            assert f"\n| `{name}" + ("(" if family else "` |") in page
