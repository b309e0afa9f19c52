"""Ten million pairs of boxes for every measure: `python -m benchmarks.fuzz`.

Values have to be finite and inside the range, gradients finite, for every finite input:
any bit pattern, coordinates that coincide, boxes near each other in any unit, and small
integers, where edges touch. Each kind and each dtype gets an equal share.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from docs.make_measures_table import members
from examples.page import fill, head, heading, read

from .report import markdown

OUT = Path(__file__).parent / "fuzz.json"
PAGE = Path(__file__).parent / "README.md"
DTYPES = ("float32", "bfloat16", "float16", "float64")
BLOCK = 1 << 17
FAULTS = ("value not finite", "value out of range", "gradient not finite")


@dataclasses.dataclass(frozen=True)
class Config:
    """Tries every public measure on random pairs of boxes of every kind and dtype."""

    pairs: int = 10_000_000
    """Pairs for each measure, at least."""
    measures: str = "all"
    """Names, separated by commas."""
    seed: int = 0
    """Draws the pairs."""
    out: Path = OUT
    """Where the results go."""
    tables: bool = False
    """Try nothing; write the table of `out` into benchmarks/README.md."""


def any_finite(key, shape, dtype):
    """Every bit pattern alike: all exponents, denormals, both zeros."""
    info = jnp.finfo(dtype)
    bits = jax.random.bits(key, shape, f"uint{info.bits}")
    x = jax.lax.bitcast_convert_type(bits, dtype)
    return jnp.where(jnp.isfinite(x), x, 1)


def shared(key, shape, dtype):
    """Coordinates of a pair are among three numbers: ties, points, inverted boxes."""
    first, second = jax.random.split(key)
    numbers = any_finite(first, (shape[0], 3), dtype)
    chosen = jax.random.randint(second, (shape[0], shape[1] * shape[2]), 0, 3)
    return jnp.take_along_axis(numbers, chosen, axis=1).reshape(shape)


def near(key, shape, dtype):
    """Boxes of like size of which half overlap, in units from 1e-12 to 1e12."""
    places, sides, turns, unit = jax.random.split(key, 4)
    half = shape[2] // 2
    place = jax.random.uniform(places, (*shape[:2], half))
    side = 10 ** jax.random.uniform(sides, (*shape[:2], half), minval=-1, maxval=0.5)
    scale = 10 ** jax.random.uniform(unit, (shape[0], 1, 1), minval=-12, maxval=12)
    turned = shape[2] % 2 == 1
    end = side if turned else place + side
    boxes = jnp.concatenate([place, end], axis=2) * scale
    if turned:
        angle = jax.random.uniform(turns, (*shape[:2], 1), minval=-4, maxval=4)
        boxes = jnp.concatenate([boxes, angle], axis=2)
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(boxes, -limit, limit).astype(dtype)


def grid(key, shape, dtype):
    """Integers from 0 to 4; angles are eighths of a turn."""
    boxes = jax.random.randint(key, shape, 0, 5).astype(dtype)
    if shape[2] % 2 == 1:
        boxes = boxes.at[..., -1].multiply(np.pi / 4)
    return boxes


KINDS = (any_finite, shared, near, grid)


@functools.partial(jax.jit, static_argnames=("measure", "dtype"))
def attempt(key, measure, dtype):
    """Faults `(3, kinds)`, the first pair of each fault, extremes of the values."""
    shape, wide = (BLOCK, 2, measure.coordinates), jnp.promote_types(dtype, "float32")
    keys = jax.random.split(key, len(KINDS))
    pairs = jnp.concatenate(
        [draw(k, shape, dtype) for draw, k in zip(KINDS, keys, strict=True)]
    )
    values, pull = jax.vjp(measure, pairs[:, 0], pairs[:, 1])
    gradients = jnp.concatenate(pull(jnp.ones_like(values)), axis=1)
    finite = jnp.isfinite(values)
    outside = (values < measure.minimum) | (values > measure.maximum)
    steep = ~jnp.isfinite(gradients).all(axis=1)
    faults = jnp.stack([~finite, outside & finite, steep])
    counts = faults.reshape(len(FAULTS), len(KINDS), BLOCK).sum(axis=2)
    examples = pairs[jnp.argmax(faults, axis=1)].astype(wide)
    low, high = (jnp.where(finite, values, x) for x in (jnp.inf, -jnp.inf))
    extremes = jnp.stack([low.min(), high.max()]).astype(wide)
    return counts, examples, extremes


def one(name, measure, dtype, config):
    """One measure in one dtype."""
    rounds = -(-config.pairs // (len(DTYPES) * len(KINDS) * BLOCK))
    began, counts, found = time.perf_counter(), np.zeros((3, len(KINDS)), int), {}
    least, most = np.inf, -np.inf
    key = jax.random.key(config.seed)
    for number in range(rounds):
        with jax.enable_x64(dtype == "float64"):
            result = attempt(jax.random.fold_in(key, number), measure, dtype)
        count, examples, (low, high) = (np.asarray(x) for x in result)
        counts, least, most = counts + count, min(least, low), max(most, high)
        for fault, total, example in zip(FAULTS, count.sum(1), examples, strict=True):
            if total:
                found.setdefault(fault, example.tolist())
    return {
        "measure": name,
        "dtype": dtype,
        "pairs": rounds * len(KINDS) * BLOCK,
        "lowest": float(least),
        "highest": float(most),
        "seconds": round(time.perf_counter() - began, 1),
        **{
            fault: dict(zip((kind.__name__ for kind in KINDS), row, strict=True))
            for fault, row in zip(FAULTS, counts.tolist(), strict=True)
        },
        "examples": found,
    }


def run(config):
    """Tries all, writes and returns the results."""
    wanted = dict(members())
    if config.measures != "all":
        names = config.measures.split(",")
        if unknown := set(names) - set(wanted):
            raise SystemExit(f"--measures: unknown {sorted(unknown)}; {list(wanted)}")
        wanted = {name: wanted[name] for name in names}
    rows = [
        one(name, measure, dtype, config)
        for name, measure in tqdm(wanted.items(), desc="measures")
        for dtype in DTYPES
    ]
    results = {"head": head("benchmarks.fuzz", packages=("jax", "jaxlib"))}
    lines = ",\n".join(json.dumps(row) for row in rows)
    start = json.dumps(results["head"], indent=1)
    config.out.write_text(f'{{"head": {start},\n"rows": [\n{lines}\n]}}\n')
    return {**results, "rows": rows}


def table(results):
    """Measures down, faults of all dtypes and kinds across."""
    if results is None:
        return None
    lines = []
    for name in dict.fromkeys(row["measure"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["measure"] == name]
        faults = [sum(sum(row[fault].values()) for row in rows) for fault in FAULTS]
        low = min(row["lowest"] for row in rows)
        high = max(row["highest"] for row in rows)
        pairs = sum(row["pairs"] for row in rows)
        ends = f"{low:.4g} to {high:.4g}"
        lines.append([f"`{name}`", f"{pairs:,}", ends, *(f"{x:,}" for x in faults)])
    header = ["measure", "pairs", "values found", *FAULTS]
    return f"{markdown(header, lines)}\n\n{heading(results['head'])}"


def main():
    config = tyro.cli(Config, prog="python -m benchmarks.fuzz")
    if config.tables:
        fill({"fuzz": table(read(config.out))}, PAGE)
    else:
        print(table(run(config)))


if __name__ == "__main__":
    main()
