"""The long fuzz: it draws what it says, finds a fault, and its table is up to date."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiou
from benchmarks import fuzz
from examples.page import read


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(fuzz, "BLOCK", 64)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", fuzz.KINDS)
@pytest.mark.parametrize("coordinates", [4, 7])
def test_drawn_boxes_are_finite_and_of_their_kind(kind, dtype, coordinates):
    pairs = kind(jax.random.key(0), (64, 2, coordinates), dtype)
    assert pairs.shape == (64, 2, coordinates) and pairs.dtype == dtype
    pairs = np.asarray(pairs, np.float64)
    assert np.isfinite(pairs).all()
    distinct = [len(np.unique(pair)) for pair in pairs]
    sizes = np.log2(np.abs(pairs[pairs != 0]))
    if kind is fuzz.any_finite:
        assert min(distinct) > 4 and np.ptp(sizes) > 20
    elif kind is fuzz.shared:
        assert max(distinct) == 3
    elif kind is fuzz.grid:
        assert set(np.unique(pairs[..., :-1])) == {0, 1, 2, 3, 4}
    elif dtype == "float32" and coordinates == 4:
        overlap = jaxiou.iou(*np.float32(pairs).swapaxes(0, 1)) > 0
        assert 0.3 < np.mean(overlap) < 0.7


def test_faults_are_counted_and_shown(tmp_path, monkeypatch):
    @jaxiou.measure(minimum=0.0, maximum=3.0)
    def faulty(a, b):
        """NaN where boxes begin at 0, 4 where at 4, no slope where both end at 1."""
        x = jnp.where(a[0] == 0, jnp.nan, a[0])
        return x + jnp.sqrt(jnp.abs(a[2] - 1) + jnp.abs(b[2] - 1)) * 0

    monkeypatch.setattr(fuzz, "members", lambda: [("faulty", faulty)])
    monkeypatch.setattr(fuzz, "KINDS", (fuzz.grid,))
    monkeypatch.setattr(fuzz, "DTYPES", ("float32",))
    config = fuzz.Config(pairs=100, out=tmp_path / "fuzz.json")
    fuzz.run(config)
    (row,) = read(config.out)["rows"]
    key = jax.random.key(config.seed)
    drawn = []
    for number in range(2):
        (k,) = jax.random.split(jax.random.fold_in(key, number), 1)
        drawn.append(fuzz.grid(k, (64, 2, 4), "float32"))
    a, b = np.concatenate(drawn).swapaxes(0, 1)
    none, beyond = a[:, 0] == 0, a[:, 0] == 4
    steep = (a[:, 2] == 1) & (b[:, 2] == 1)
    wanted = [none.sum(), beyond.sum(), steep.sum()]
    assert [row[fault]["grid"] for fault in fuzz.FAULTS] == wanted
    assert min(wanted) > 0
    for fault, which in zip(fuzz.FAULTS, (none, beyond, steep), strict=True):
        first = np.flatnonzero(which)[0]
        assert row["examples"][fault] == [a[first].tolist(), b[first].tolist()]
    line = f"| `faulty` | 128 | 1 to 4 | {wanted[0]} | {wanted[1]} | {wanted[2]} |"
    assert line in fuzz.table(read(config.out))


def test_a_public_measure_runs(tmp_path):
    config = fuzz.Config(pairs=1, measures="giou", out=tmp_path / "fuzz.json")
    rows = fuzz.run(config)["rows"]
    assert [row["dtype"] for row in rows] == list(fuzz.DTYPES)
    assert not any(row["examples"] for row in rows)
    assert json.loads(config.out.read_text())["rows"] == rows
    assert all(-1 <= row["lowest"] < 0 < row["highest"] <= 1 for row in rows)
    with pytest.raises(SystemExit, match="unknown"):
        fuzz.run(fuzz.Config(measures="nobody"))


def test_what_was_committed_holds():
    """Every measure, and no fault but slopes between turned boxes beyond all scales."""
    results = read(fuzz.Config().out)
    assert {row["measure"] for row in results["rows"]} == dict(fuzz.members()).keys()
    assert len(results["rows"]) == len(fuzz.DTYPES) * len(dict(fuzz.members()))
    known = {"kfiou", "kfiou_raw", "rotated_nwd", "rotated_giou", "yaw_giou_3d"}
    for row in results["rows"]:
        for fault in fuzz.FAULTS:
            count = sum(row[fault].values())
            steep = fault == fuzz.FAULTS[-1] and row["measure"] in known
            assert count <= 0.006 * row["pairs"] * steep, (row["measure"], fault)
    page = (Path(fuzz.__file__).parent / "README.md").read_text()
    assert fuzz.table(results) in page
