"""Do the tests notice a wrong operator? `python -m benchmarks.mutation --help`.

One operator, comparison or number of the library is altered at a time, by cosmic-ray,
in a copy of the tree, and the tests of that module run until one fails. What none of
them notices is a *survivor*: it is listed, to be read, and either tested or explained,
in one sentence of the results (`why`).
"""

import concurrent.futures
import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tyro

from .measure import commit, device
from .report import fill, markdown, save

ROOT = pathlib.Path(__file__).parents[1]
RESULT = pathlib.Path(__file__).with_suffix(".json")
# The cheapest first: the first failure ends a run.
TESTS = {
    "_numerics": "numerics golden measures gaussian variants",
    "boxes": "stability boxes anchors golden_boxes",
    "measures": "stability golden measures variants losses",
    "matching": "stability matching ties golden_assigners processes",
    "suppression": "stability suppression ties rescoring golden_suppression",
}
# Replaced by these an expression fails wherever it runs, which proves nothing.
TRIVIAL = re.compile(
    r"_(RShift|LShift|BitXor|MatMul|Mod|Pow|FloorDiv)$|Decorator"
    r"|_(Add|Sub|Mul|Div|Pow|FloorDiv|Mod)_Bit|_Bit(And|Or)_(Add|Sub|Mul|Div)$"
    r"|_USub_(Invert|Not|UAdd)$|_Invert_(Not|USub|UAdd)$|(?<!_Is|Not)_(Is|IsNot)$"
)
OUTCOMES = ("noticed", "endless", "survived", "not importable")
# Compiling is most of what the tests do: quickly, and once for all that is not altered.
QUICKLY = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "mutation"),
}
KEPT = ("jaxiou", "tests", "examples", "benchmarks", "docs", "pyproject.toml")


@dataclasses.dataclass(frozen=True)
class Config:
    """Alters the library in small ways, and counts what the tests notice."""

    count: int = 300
    """Alterations to draw of all there are."""
    seed: int = 0
    """Draws them."""
    workers: int = 2
    """Copies of the tree that are tested at once."""
    patience: int = 900
    """Seconds of a core after which a run counts as noticed: it goes on for ever."""
    json: pathlib.Path = RESULT
    """Where the results go; those that are there are kept."""
    again: bool = False
    """Try anew what survived and is not explained, and replace its results."""
    tables: bool = False
    """Alter nothing; write the table into benchmarks/README.md."""


def mutants(module):
    """Every alteration of a module: `(operator, occurrence, line)`."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    tree = get_ast((ROOT / "jaxiou" / f"{module}.py").read_text())
    for name in sorted(plugins.operator_names()):
        kind = plugins.get_operator(name)
        if kind.arguments() or TRIVIAL.search(name):
            continue
        places = (
            start
            for node in ast_nodes(tree)
            for start, _ in kind().mutation_positions(node)
        )
        for occurrence, start in enumerate(places):
            yield name, occurrence, start[0]


def altered(module, name, occurrence):
    """The text of a module with one alteration."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    text = (ROOT / "jaxiou" / f"{module}.py").read_text()
    return text, mutate_code(text, plugins.get_operator(name)(), occurrence)


def outcome(folder, module, patience):
    """What the tests say of the tree in a folder, and for how long."""
    began = time.perf_counter()
    environment = {**os.environ, **QUICKLY, "PYTHONPATH": str(folder)}
    within = dict(cwd=folder, env=environment, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", "import jaxiou"], **within)
    if done.returncode:
        return "not importable", 0.0
    files = [f"tests/test_{name}.py" for name in TESTS[module].split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", *files]
    limited = ["sh", "-c", f'ulimit -t {patience}; exec "$@"', "sh", *command]
    try:
        # Waiting takes no time of a core.
        done = subprocess.run(limited, **within, timeout=4 * patience)
    except subprocess.TimeoutExpired:
        return "endless", 4 * patience
    seconds = round(time.perf_counter() - began, 1)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "endless", seconds
    if done.returncode in (4, 5):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return "noticed" if done.returncode else "survived", seconds


def key(row):
    """What names an alteration."""
    return row["module"], row["operator"], row["occurrence"]


def digest(module):
    """What tells the text of a module from others."""
    text = (ROOT / "jaxiou" / f"{module}.py").read_bytes()
    return hashlib.sha256(text).hexdigest()[:8]


def copy(folder):
    """A tree of its own for a worker."""
    for name in KEPT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)


def run(config):
    """Tries what was drawn and is not among the results yet."""
    everything = [(m, *each) for m in TESTS for each in mutants(m)]
    count = min(config.count, len(everything))
    drawn = random.Random(config.seed).sample(everything, count)
    rows = json.loads(config.json.read_text())["rows"] if config.json.exists() else []
    # What was tried of another text of a module says nothing of this one.
    rows = [row for row in rows if row["of"] == digest(row["module"])]
    tried = {key(row): row for row in rows}
    waiting = [each for each in drawn if each[:3] not in tried]
    if config.again:
        again = [r for r in rows if r["outcome"] == "survived" and "why" not in r]
        waiting = [(*key(row), row["line"]) for row in again]
        rows = [row for row in rows if row not in again]
    head = {"device": device(), "commit": commit(), "of": len(everything)}
    free = queue.SimpleQueue()

    def one(each):
        module, name, occurrence, line = each
        folder = free.get()
        path = folder / "jaxiou" / f"{module}.py"
        text, other = altered(module, name, occurrence)
        path.write_text(other)
        try:
            result, seconds = outcome(folder, module, config.patience)
        finally:
            path.write_text(text)
            free.put(folder)
        lines = difflib.unified_diff(text.split("\n"), other.split("\n"), n=0)
        change = [x for x in lines if x[:1] in "+-" and x[:3] not in ("---", "+++")]
        found = {"outcome": result, "seconds": seconds, "of": digest(module)}
        if each[:3] in tried:
            found["again"] = True
        keys = dict(module=module, operator=name, occurrence=occurrence, line=line)
        return {**keys, "change": change, **found}

    with tempfile.TemporaryDirectory() as place:
        for k in range(config.workers):
            folder = pathlib.Path(place, str(k))
            folder.mkdir()
            copy(folder)
            free.put(folder)
        with concurrent.futures.ThreadPoolExecutor(config.workers) as pool:
            running = [pool.submit(one, each) for each in waiting]
            for future in concurrent.futures.as_completed(running):
                rows.append(row := future.result())
                told = row["outcome"], row["seconds"], row["module"], *row["change"]
                print(len(rows), *told, flush=True)
                save({"head": head, "rows": rows}, config.json)
        # Tests that fail of themselves notice everything.
        survived = {row["module"] for row in rows if row["outcome"] == "survived"}
        for module in {row["module"] for row in rows} - survived:
            result, _ = outcome(folder, module, config.patience)
            if result != "survived":
                raise RuntimeError(f"the tests of {module} fail as it is: {result}")
    return {"head": head, "rows": rows}


def table(results):
    """The share of each module, and where they are from."""
    head, rows, lines = results["head"], results["rows"], []
    for module in (*TESTS, "all"):
        own = [row["outcome"] for row in rows if module in (row["module"], "all")]
        count = {outcome: own.count(outcome) for outcome in OUTCOMES}
        noticed = count["noticed"] + count["endless"]
        tried = noticed + count["survived"]
        later = [row for row in rows if "again" in row and row["outcome"] != "survived"]
        later = sum(module in (row["module"], "all") for row in later)
        scores = (noticed - later, noticed) if tried else ()
        scores = [f"{100 * score / tried:.0f} %" for score in scores] or ["", ""]
        lines.append([module, *map(str, count.values()), *scores])
    drawn = f"{len(rows)} of {head['of']:,} alterations"
    made = f"{drawn}; {head['device']}; commit {head['commit']}."
    parts = [markdown(["module", *OUTCOMES, "at first", "score"], lines), made]
    left = [row for row in rows if row["outcome"] == "survived"]
    left = sorted(left, key=lambda row: (row["module"], row["line"]))
    listed = []
    for row in left:
        change = "".join(f"    {line}\n" for line in row["change"])
        why = row.get("why", "Not read yet.")
        listed.append(f"`{row['module']}.py`: {why}\n\n{change}")
    return "\n\n".join([*parts, *map(str.rstrip, listed)])


def main():
    config = tyro.cli(Config, prog="python -m benchmarks.mutation")
    if not config.tables:
        print(table(run(config)))
        return
    page = pathlib.Path(__file__).with_name("README.md")
    results = json.loads(config.json.read_text()) if config.json.exists() else None
    page.write_text(fill(page.read_text(), {"mutation": results and table(results)}))


if __name__ == "__main__":
    main()
