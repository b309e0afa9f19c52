"""Loads the vectors of tests/golden/; README.md there says what is in them."""

import contextlib
import functools
import gzip
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"


@functools.cache
def load(name):
    """A file as nested dicts, its cases by id and its arrays as NumPy arrays.

    Numbers become float64, integers included; "NaN", "Infinity" and "-Infinity" are
    parsed; lists of booleans and of names keep their type.
    """
    content = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    return _arrays(content)


def cases(name, *prefixes):
    """The cases whose id begins with one of the prefixes; some of each must exist."""
    every = load(name)["cases"]
    chosen = [
        case for key, case in every.items() if not prefixes or key.startswith(prefixes)
    ]
    for prefix in prefixes:
        assert any(key.startswith(prefix) for key in every), prefix
    return chosen


def _arrays(value):
    if isinstance(value, dict):
        return {key: _arrays(entry) for key, entry in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {entry["id"]: _arrays(entry) for entry in value}
    if isinstance(value, list):
        return _array(value)
    return value


def _array(value):
    array = np.asarray(value)
    if array.dtype.kind != "b":
        # Lists of numbers with a "NaN" among them arrive as text.
        with contextlib.suppress(ValueError):
            array = np.asarray(value, np.float64)
    array.setflags(write=False)
    return array
