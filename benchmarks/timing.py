"""Interleaved timing of several implementations of one job, and their peak memory."""

import ctypes
import gc
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Skip(Exception):
    """Why an implementation does not take part; empty where it has no such function."""


class Call(NamedTuple):
    """One implementation of one job, compiled, with its inputs in place.

    `wait` blocks until what `run` returned is there, where `run` does not; `read` turns
    it into what the others return, outside of the timing; `scale` is the size of the
    job over that of the call.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any] = lambda result: result
    read: Callable[[Any], Any] = lambda result: result
    temporary: int | None = None
    scale: float = 1.0


def once(call, repeats=1):
    """Seconds for some calls; what they return is freed after the clock has stopped."""
    start = time.perf_counter()
    for _ in range(repeats):
        result = call.run()
    call.wait(result)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def interleaved(calls, usual, rounds, seconds, rng, *, queue=False):
    """Milliseconds per call in every round, the order within a round being random.

    `usual` says how many seconds a call takes, about. A visit is one call that is not
    counted (it ends the last neighbour's spinning threads and fetches the inputs) and
    then calls for 10 ms. Slow implementations do without the first, and take part in
    fewer rounds: as many as `seconds` allow, but three. With `queue` the calls of a
    visit are waited for together, as an accelerator works them off.
    """
    visits = {
        name: int(min(rounds, max(3, seconds / (2 * time))))
        for name, time in usual.items()
    }
    times = {name: [] for name in calls}
    for turn in range(rounds):
        for name in rng.permutation([name for name in calls if turn < visits[name]]):
            call, repeats = calls[name], int(min(50, max(1, 0.01 / usual[name])))
            if usual[name] < 0.25:
                once(call)
            if queue:
                total = once(call, repeats)
            else:
                total = sum(once(call) for _ in range(repeats))
            mean = total / repeats
            times[name].append(float(f"{mean * 1e3 * call.scale:.4g}"))
    return times


def first_look(call):
    """Seconds of one call, and the most memory it holds above what was held before.

    Linux only, None elsewhere. The kernel's high-water mark is set back first: a
    process of its own for every number, which would count the compiler too, is not
    needed.
    """
    status, reset = (pathlib.Path("/proc/self", x) for x in ("status", "clear_refs"))

    def kilobytes(field):
        return int(status.read_text().split(field)[1].split()[0])

    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    try:
        reset.write_text("5")
        before = kilobytes("VmRSS:")
    except OSError:
        return once(call), None
    elapsed = once(call)
    return elapsed, max(0, kilobytes("VmHWM:") - before) * 1024


def to_numpy(array):
    """The numbers of an array of JAX, NumPy or torch, wherever they are."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
