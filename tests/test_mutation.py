"""Mutation testing: what is altered, what is tried again, and how it is counted."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import mutation


def row(outcome, **more):
    change = ["-a < b", "+a <= b"]
    keys = dict(module="boxes", operator="X", occurrence=0, line=3, change=change)
    return {**keys, "outcome": outcome, "seconds": 1.0, "of": "0", **more}


def test_a_score_counts_what_ran_and_lists_what_survived():
    outcomes = ["noticed"] * 6 + ["endless", "survived", "not importable"]
    rows = [*map(row, outcomes), row("survived", module="measures", why="Equal.")]
    rows[0]["again"] = True
    head = {"of": 1234, "device": "a machine", "commit": "abc"}
    text = mutation.table({"head": head, "rows": rows})
    assert "| boxes | 6 | 1 | 1 | 1 | 75 % | 88 % |" in text
    assert "| measures | 0 | 0 | 1 | 0 | 0 % | 0 % |" in text
    assert "| matching | 0 | 0 | 0 | 0 |  |  |" in text
    assert "| all | 6 | 1 | 2 | 1 | 67 % | 78 % |" in text
    assert "10 of 1,234 alterations; a machine; commit abc." in text
    assert "`boxes.py`: Not read yet.\n\n    -a < b\n    +a <= b" in text
    assert text.endswith("`measures.py`: Equal.\n\n    -a < b\n    +a <= b")


@pytest.mark.parametrize("module", mutation.TESTS)
def test_an_alteration_is_one_small_change_of_a_program(module):
    pytest.importorskip("cosmic_ray", reason="needs the extra `dev`")
    everything = list(mutation.mutants(module))
    assert len(everything) > 100 and len(set(everything)) == len(everything)
    for name, occurrence, line in everything[:: len(everything) // 5]:
        text, other = mutation.altered(module, name, occurrence)
        pairs = zip(text.splitlines(), other.splitlines(), strict=True)
        changed = [k for k, (old, new) in enumerate(pairs, 1) if old != new]
        assert changed and min(abs(k - line) for k in changed) < 3
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(other))


def test_what_is_known_stays_and_survivors_are_tried_on_request(tmp_path, monkeypatch):
    pytest.importorskip("cosmic_ray", reason="needs the extra `dev`")
    tried = []

    def outcome(folder, module, patience):
        source = (folder / "jaxiou" / f"{module}.py").read_text()
        whole = source == (mutation.ROOT / "jaxiou" / f"{module}.py").read_text()
        tried.append("as it is" if whole else module)
        return ("survived" if whole or tried.count(module) == 1 else "noticed"), 1.0

    monkeypatch.setattr(mutation, "outcome", outcome)
    monkeypatch.setattr(mutation, "TESTS", {"boxes": "boxes"})
    config = mutation.Config(count=3, workers=1, json=tmp_path / "m.json")
    results = mutation.run(config)
    assert tried == ["boxes", "boxes", "boxes"]
    outcomes = sorted(x["outcome"] for x in results["rows"])
    assert outcomes == ["noticed", "noticed", "survived"]
    assert json.loads(config.json.read_text()) == results
    assert mutation.run(config) == results and len(tried) == 3
    again = dataclasses.replace(config, again=True, count=1, seed=5)
    found = mutation.run(again)
    assert tried[3:] == ["boxes", "as it is"]  # now that nothing survived
    assert [x["outcome"] for x in found["rows"]] == 3 * ["noticed"]
    (left,) = (x for x in results["rows"] if x["outcome"] == "survived")
    assert found["rows"][-1]["change"] == left["change"]

    # What is explained is not tried again, and nothing stays with another text.
    rows = [found["rows"][0] | {"outcome": "survived", "why": "Equal."}]
    mutation.save({"head": results["head"], "rows": rows}, config.json)
    monkeypatch.setattr(mutation, "outcome", lambda *_: 1 / 0)
    assert mutation.run(again)["rows"] == rows
    monkeypatch.setattr(mutation, "digest", lambda module: "another")
    assert mutation.run(again)["rows"] == []


PROGRAMS = {
    "survived": "def test(): pass",
    "noticed": "def test(): assert False",
    "endless": "def test():\n    while True: pass",
    "not importable": "",
}


@pytest.mark.parametrize("expected", PROGRAMS)
def test_an_outcome_is_what_the_tests_say(expected, tmp_path):
    for name in ("jaxiou", "tests"):
        (tmp_path / name).mkdir()
    package = "" if PROGRAMS[expected] else "raise ValueError"
    (tmp_path / "jaxiou" / "__init__.py").write_text(package)
    for name in mutation.TESTS["boxes"].split():
        (tmp_path / "tests" / f"test_{name}.py").write_text(PROGRAMS[expected])
    assert mutation.outcome(tmp_path, "boxes", 4)[0] == expected


def test_a_crash_was_noticed(tmp_path):
    for name in ("jaxiou", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "jaxiou" / "__init__.py").write_text("")
    for name in mutation.TESTS["boxes"].split():
        path = tmp_path / "tests" / f"test_{name}.py"
        path.write_text("import os\ndef test(): os.abort()")
    assert mutation.outcome(tmp_path, "boxes", 4)[0] == "noticed"


def test_tests_that_fail_of_themselves_prove_nothing(tmp_path, monkeypatch):
    pytest.importorskip("cosmic_ray", reason="needs the extra `dev`")
    monkeypatch.setattr(mutation, "outcome", lambda *_: ("noticed", 1.0))
    config = mutation.Config(count=1, workers=1, json=tmp_path / "m.json")
    with pytest.raises(RuntimeError, match="fail as it is"):
        mutation.run(config)


def test_what_was_committed_is_what_the_page_says():
    results = json.loads(mutation.RESULT.read_text())
    page = Path(mutation.__file__).with_name("README.md").read_text()
    assert mutation.table(results) in page
    counts = [row["outcome"] for row in results["rows"]]
    noticed = counts.count("noticed") + counts.count("endless")
    assert noticed >= 0.85 * (noticed + counts.count("survived"))
    assert all(row["outcome"] != "survived" or "why" in row for row in results["rows"])
