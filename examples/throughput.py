"""Images in a second of training the detector: `python -m examples.throughput`.

With the virtual devices of one CPU it shows what spreading a batch costs, not what more
devices gain: `XLA_FLAGS=--xla_force_host_platform_device_count=8` before it.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import jax
import tyro
from flax import nnx

from benchmarks.report import markdown

from .detector.assign import ASSIGNERS
from .detector.config import Config
from .detector.data import Batches, load
from .detector.state import create
from .detector.train import sharing, spread_over, train_step
from .loss_study import save
from .page import fill, head, heading, read

PAGE = Path(__file__).parents[1] / "docs" / "detector.md"


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Times steps on 1, 2, 4, ... devices: batches prepared before, no evaluation."""

    batch_size: int = 16
    """Images of a step, shared by the devices."""
    steps: int = 12
    """Steps to time, after two."""
    preset: str = "small"
    """The network, `small` or `base`."""
    out: Path = Path("docs/detector")
    """Where `throughput.json` goes."""
    tables: bool = False
    """Time nothing; write the table of `out` into docs/detector.md."""


def measure(config, dataset, batches, steps):
    """The median of the seconds that steps take."""
    spread, parts = sharing(config), create(config, dataset.classes)
    spread_over(spread, parts)
    assign, seconds = ASSIGNERS[config.assigner], []
    for step in range(steps + 2):
        batch = batches[step % len(batches)]
        began = time.perf_counter()
        if spread:
            batch = jax.make_array_from_process_local_data(spread[0], batch)
        losses = train_step(parts, batch, config.box_loss, 1.0, assign)
        jax.block_until_ready((losses, nnx.state(parts)))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def run(options):
    """One row for each precision and number of devices."""
    base = Config(preset=options.preset, batch_size=options.batch_size, digit_images=64)
    base = dataclasses.replace(base, image_size=(96, 96))
    dataset = load(base)
    source = Batches(dataset, base.image_size, base.batch_size, base.seed)
    batches = [source(step) for step in range(4)]
    counts = [1 << k for k in range(jax.device_count().bit_length())]
    rows = []
    for precision in ("float32", "bfloat16"):
        for count in counts:
            config = dataclasses.replace(base, devices=count, precision=precision)
            seconds = measure(config, dataset, batches, options.steps)
            rate = round(options.batch_size / seconds, 1)
            row = dict(precision=precision, devices=count, images_per_second=rate)
            rows.append({**row, "preset": options.preset, "batch": options.batch_size})
            print(rows[-1], flush=True)
    origin = head("examples.throughput")
    return [{**row, "head": origin} for row in rows]


def tables(rows):
    """The block of the page: images in a second by the number of devices."""
    parts, groups = [], {}
    for row in rows or []:
        groups.setdefault(heading(row["head"]), []).append(row)
    for text, group in groups.items():
        counts = sorted({row["devices"] for row in group})
        lines = []
        for name in dict.fromkeys(row["precision"] for row in group):
            found = {r["devices"]: r for r in group if r["precision"] == name}
            rates = (f"{found[n]['images_per_second']:,}" for n in counts)
            lines.append([name, *rates])
        first = group[0]
        title = f"`{first['preset']}`, batches of {first['batch']} digits"
        parts += [f"{title}. {text}", markdown(["devices", *map(str, counts)], lines)]
    return {"throughput": "\n\n".join(parts)}


def main():
    options = tyro.cli(Throughput, prog="python -m examples.throughput")
    path = options.out / "throughput.json"
    if options.tables:
        fill(tables(read(path)), PAGE)
        return
    rows = run(options)
    made = rows[0]["head"]
    # A device measured anew replaces what it said before.
    kept = [r for r in read(path) or [] if r["head"]["device"] != made["device"]]
    save(kept + rows, path)


if __name__ == "__main__":
    main()
