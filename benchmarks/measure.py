"""One run in one process: every job, every implementation, checked and then timed."""

import datetime
import os
import pathlib
import platform
import subprocess

import jax
import numpy as np

import jaxiou

from . import plain
from .in_jax import IMPLEMENTATIONS
from .peers import PEERS, version
from .timing import Skip, first_look, interleaved, to_numpy
from .workloads import jobs

# Rounding in another order; the eps of other libraries on boxes of pixels.
TOLERANCE = 2e-5


def prepare(job, peers=()):
    """Calls by implementation, and the reasons of those that do not take part."""
    everyone = IMPLEMENTATIONS | {name: PEERS[name][1] for name in peers}
    inputs, calls, notes = job.inputs(), {}, {}
    for name, function in everyone.items():
        try:
            calls[name] = function(job, inputs)
        except Skip as reason:
            notes |= {name: str(reason)} if reason.args else {}
        except ImportError:
            pass  # stands in the head of the results
        except Exception as error:
            # A peer that does not work here (a compiler is missing) stops nobody else.
            if name in IMPLEMENTATIONS:
                raise
            notes[name] = f"failed: {type(error).__name__}"
    check(job, inputs, calls, notes)
    return calls, notes


def check(job, inputs, calls, notes):
    """Drops the peers that fail, or that give another answer than jaxiou."""
    if not set(calls) - {"jaxiou", "limit"}:
        return
    reference = [to_numpy(x) for x in flat(calls["jaxiou"].run())]
    for name in [name for name in calls if name not in ("jaxiou", "limit")]:
        call = calls[name]
        try:
            found = [to_numpy(x) for x in flat(call.read(call.run()))]
        except Exception as error:
            if name in IMPLEMENTATIONS:
                raise
            notes[name] = f"failed: {type(error).__name__}"
            del calls[name]
            continue
        if (difference := disagreement(job, inputs, reference, found)) > 1:
            notes[name] = f"not timed, its answers differ ({difference:.1g} tolerances)"
            del calls[name]


def flat(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def disagreement(job, inputs, ours, theirs):
    """How far two results are apart, in units of what rounding explains."""
    if job.family == "nms":
        kept, other = ({int(i) for i in x[0] if i >= 0} for x in (ours, theirs))
        # A pair at the threshold may fall either way, and others with it.
        return len(kept ^ other) / max(1, 0.002 * len(kept))
    if job.family == "assigners":
        same = ours[0].ravel() == theirs[0].ravel()
        pairs = zip(ours[1:], theirs[1:], strict=True)  # soft scores, if any
        values = [_apart(x.ravel()[same], y.ravel()[same]) for x, y in pairs]
        return max((~same).mean() / 1e-3, *values, 0)
    if job.case == "match_anchors":
        differing = (ours[0].ravel() != theirs[0].ravel()).mean()
        return max(differing / 1e-3, _apart(ours[1].ravel(), theirs[1].ravel()))
    if job.case in ("best_match", "streamed"):
        values = [_apart(ours[k], theirs[k]) for k in (0, 2)]
        # Equal values tie: an index is right where its pair attains the value.
        a, b = inputs
        pick = lambda x, indices: np.take_along_axis(x, indices[..., None], 1)  # noqa: E731
        for boxes, others, k in ((a, b, 0), (b, a, 2)):
            chosen = pick(others, theirs[k + 1].astype(np.int64))
            pairs = np.moveaxis(boxes, -1, 0), np.moveaxis(chosen, -1, 0)
            values.append(_apart(ours[k], plain.iou(np, *pairs)))
        return max(values)
    if job.case == "decoded giou":
        # A side that is rounded otherwise may lie on the other side of its target's.
        apart = np.abs(ours[1] - theirs[1]) > TOLERANCE * np.abs(ours[1]).max()
        return max(_apart(ours[0], theirs[0]), apart.mean() / 1e-4)
    if job.case == "lovasz":
        # Equal errors may go in any order, and differences of quotients near 1 keep
        # 6e-8 at best, however small they are.
        slopes = [np.sort(x[1], axis=1) for x in (ours, theirs)]
        return max(_apart(ours[0], theirs[0]), _apart(*slopes, least=1e-2))
    return max(_apart(x, y) for x, y in zip(ours, theirs, strict=True))


def _apart(ours, theirs, least=1e-30):
    if ours.shape != theirs.shape or not np.isfinite(theirs).all():
        return np.inf
    largest = max(least, np.abs(ours).max(initial=0))
    return np.abs(ours - theirs).max(initial=0) / (TOLERANCE * largest)


def measure(job, *, peers, rounds, seconds, rng):
    """The rows of one job: times in milliseconds per round, and bytes."""
    calls, notes = prepare(job, peers)
    if job.family == "memory":
        rounds = 1
    looks = {name: first_look(call) for name, call in calls.items()}
    usual = {name: elapsed for name, (elapsed, _) in looks.items()}
    queue = jax.default_backend() != "cpu"
    times = interleaved(calls, usual, rounds, seconds, rng, queue=queue)
    shared = {k: getattr(job, k) for k in ("family", "case", "workload", "pairs")}
    for name in [*calls, *notes]:
        row = {**shared, "traffic": job.traffic, "implementation": name}
        if name in notes:
            yield {**row, "note": notes[name]}
            continue
        row |= {"ms": times[name], "temporary_bytes": calls[name].temporary}
        # What the process holds says nothing of an accelerator's memory.
        known = name != "limit" and not queue
        yield {**row, "peak_bytes": looks[name][1] if known else None}


def run(only, *, peers, rounds, seconds, tiny=False, log=print, keep=lambda _: None):
    """The results of all jobs; `keep` gets those so far after each of them."""
    rng = np.random.default_rng(0)
    results = {"head": head(), "rows": []}
    rows = results["rows"]
    larger = jax.default_backend() != "cpu"
    for job in jobs(only, tiny=tiny, larger=larger):
        log(f"{job.family} {job.case} {job.workload}", end=":", flush=True)
        settings = dict(peers=peers, rounds=rounds, seconds=seconds, rng=rng)
        for row in measure(job, **settings):
            rows.append(row)
            short = f"{np.median(row['ms']):.4g}" if "ms" in row else f"({row['note']})"
            log(f" {row['implementation']} {short}", end=";", flush=True)
        log()
        keep(results)
        # Neither the programs nor their inputs are needed again.
        jax.clear_caches()
    return results


def head():
    distributions = {distribution for distribution, _ in PEERS.values()}
    names = sorted({"jax", "jaxlib", *distributions})
    return {
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "platform": jax.default_backend(),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "jaxiou": jaxiou.__version__,
            **{name: version(name) for name in names},
        },
    }


def device():
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return f"{(models or [platform.machine()])[0]}, {os.cpu_count()} cores"


def commit():
    command = ["git", "describe", "--always", "--dirty"]
    root = pathlib.Path(__file__).parents[1]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
