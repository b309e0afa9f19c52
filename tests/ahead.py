"""Compiling for an NVIDIA H200 or a TPU, v5e or v6e, that is not there.

Needs the compilers only, `jax-cuda13-plugin` and `jax-cuda13-pjrt`, or `libtpu`, all of
the version of jax; `pip install "jax[tpu]"` and `pip install --no-deps` of the former
put them into one environment.
"""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# libtpu asks the machine it runs on what it is, unless told.
_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by the workers of a test run
}
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""

NEW_ENOUGH = tuple(int(x) for x in jax.__version__.split(".")[:2]) >= (0, 11)


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def lowered(function, *shapes, platform):
    """The program for a platform, as text: what is in it before it is compiled."""
    traced = jax.jit(function).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@functools.cache
def devices(platform, count=1):
    """Devices to compile for; the test is skipped where the compiler is missing.

    `platform` is "cuda" or the name of a TPU.
    """
    module = "jax_cuda13_plugin" if platform == "cuda" else "libtpu"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    if platform == "cuda":
        description = topologies.get_topology_desc(
            platform="cuda", target_config=_H200, topology=f"1x1x{count}"
        )
    else:
        for key, value in _TPU.items():
            os.environ.setdefault(key, value)
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{platform}:2x2"
        )
    return description.devices[:count]


def compiled(function, *shapes, platform, mesh=None, specs=None):
    """The compiled program for one device, or for a mesh with arguments sharded so."""
    if mesh is None:
        mesh = Mesh(np.array(devices(platform)), ("d",))
    specs = specs or [P()] * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))
        for s, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function).lower(*arguments).compile()
