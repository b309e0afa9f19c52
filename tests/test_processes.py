"""Two processes with two devices each, by `jax.distributed`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def one_of_two(port, process):
    """What each of the processes runs."""
    import jax
    from cases import random_boxes
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P
    from test_sharding import parts

    import jaxiou

    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    assert jax.process_count() == 2 and jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    anchors = np.round(random_boxes(1, 4, 24, extent=60))
    targets = np.round(random_boxes(2, 4, 7, extent=60))
    where = np.random.default_rng(3).random((4, 7)) < 0.7
    whole = anchors, targets, where

    def spread(*specs):
        return [
            jax.make_array_from_callback(
                x.shape, NamedSharding(mesh, spec), lambda index, x=x: x[index]
            )
            for x, spec in zip(whole, specs, strict=True)
        ]

    def check(found, wanted):
        for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            for part in x.addressable_shards:
                np.testing.assert_array_equal(part.data, np.asarray(y)[part.index])

    along = P(None, "d")
    specs = along, P(), P()
    by_parts = jax.shard_map(
        lambda *x: parts(*x, axis_name="d"),
        mesh=mesh,
        in_specs=specs,
        out_specs=(along, P()),
    )
    alone = jax.local_devices()[0]
    wanted = jax.jit(parts)(*jax.device_put(whole, alone))
    check(jax.jit(by_parts)(*spread(*specs)), wanted)

    def everything(anchors, targets, where):
        kept = jaxiou.nms(anchors, anchors[..., 0], threshold=0.3, max_outputs=9)
        found = jaxiou.match_anchors(anchors, targets, where=where)
        return found[:2], kept, jaxiou.pairwise(anchors, targets)

    wanted = jax.jit(everything)(*jax.device_put(whole, alone))
    check(jax.jit(everything)(*spread(P("d"), P("d"), P("d"))), wanted)
    print("equal")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(port), str(k)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0 and output.endswith("equal\n"), output


if __name__ == "__main__":
    one_of_two(*map(int, sys.argv[1:]))
