"""`python -m benchmarks --help`."""

import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import typing

import tyro

from . import report
from .workloads import FAMILIES

# A fresh output costs page faults, often more than its arithmetic. glibc keeps its
# pages when told to; one arena, since others give memory back on their own.
WARM = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}
REGIMES = {"fresh": {}, "warm": WARM}


@dataclasses.dataclass
class Config:
    """Times jaxiou, what one would write without it, other libraries and the limits."""

    only: str = ",".join(FAMILIES)
    """Families to measure, separated by commas."""
    peers: bool = False
    """Also measure the other libraries that are installed."""
    json: pathlib.Path | None = None
    """Where to write the results: a file, or a folder for `<device>-<date>.json`."""
    plot: pathlib.Path | None = None
    """Where to write the roofline plot."""
    regime: typing.Literal["both", "fresh", "warm"] = "both"
    """Memory as the process gets it, pages kept warm by the allocator, or both."""
    rounds: int = 7
    """Rounds in which every implementation is timed, in random order."""
    seconds: float = 2.0
    """What one implementation of one job may take, beyond three rounds."""
    tiny: bool = False
    """Shapes for a trial: everything runs, no figure means anything."""
    tables: bool = False
    """Measure nothing; write the figures of `benchmarks/results` into the pages."""


def child(config, regime, folder):
    """Measures one regime in its own process: malloc reads the environment once."""
    out = pathlib.Path(folder, f"{regime}.json")
    fields = [
        f"--{name}={getattr(config, name)}" for name in ("only", "rounds", "seconds")
    ]
    flags = [f"--{name}" for name in ("peers", "tiny") if getattr(config, name)]
    command = [sys.executable, "-m", "benchmarks", "--regime", regime, "--json", out]
    # JAX and torch share a GPU.
    sharing = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    environment = {**sharing, **REGIMES[regime], "BENCHMARKS_CHILD": "1"}
    subprocess.run([*command, *fields, *flags], env=environment, check=True)
    return json.loads(out.read_text())


def main(arguments=None):
    config = tyro.cli(Config, args=arguments)
    if config.tables:
        return report.write_tables()
    only = config.only.split(",")
    if unknown := set(only) - set(FAMILIES):
        sys.exit(f"--only: {sorted(unknown)} unknown; there are {', '.join(FAMILIES)}.")
    if "BENCHMARKS_CHILD" in os.environ:
        # JAX holds a GPU from here on: not in the parent.
        from . import measure
        from .peers import PEERS

        settings = {k: getattr(config, k) for k in ("rounds", "seconds", "tiny")}
        peers = PEERS if config.peers else ()

        def keep(results):
            for row in results["rows"]:
                row["regime"] = config.regime
            config.json.write_text(json.dumps(results))

        measure.run(only, peers=peers, keep=keep, **settings)
        return None
    regimes = list(REGIMES) if config.regime == "both" else [config.regime]
    with tempfile.TemporaryDirectory() as folder:
        results = child(config, regimes[0], folder)
        # How the host allocates does not concern the memory of an accelerator.
        if results["head"]["platform"] == "cpu":
            for regime in regimes[1:]:
                results["rows"] += child(config, regime, folder)["rows"]
    typed = shlex.join(sys.argv[1:] if arguments is None else arguments)
    results["head"]["command"] = f"python -m benchmarks {typed}".strip()
    print(report.tables(results))
    if config.json:
        print(report.save(results, config.json))
    if config.plot:
        report.plot(results, config.plot)
        print(config.plot)
    return None


if __name__ == "__main__":
    main()
