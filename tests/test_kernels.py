"""The kernels without their accelerators: interpreted, lowered, and compiled ahead."""

import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead import NEW_ENOUGH, compiled, devices, f32, lowered
from cases import random_boxes
from flax import nnx
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from members import MEMBERS
from test_detector import tiny

import jaxiou
from examples.detector import data, state, train
from jaxiou import matrix
from jaxiou._measure import Measure
from jaxiou.kernels import _blocks, xla

pytestmark = pytest.mark.skipif(not NEW_ENOUGH, reason="the kernels need jax 0.11")
ROOT = Path(__file__).parents[1]
NAMES = {"tpu": "mosaic_tpu", "cuda": "mosaic_gpu"}
CALLS = {"tpu": "tpu_custom_call", "cuda": "mosaic_gpu"}
every_platform = pytest.mark.parametrize("platform", NAMES)


def planes(boxes):
    return tuple(jnp.asarray(boxes[..., k]) for k in range(boxes.shape[-1]))


def module(platform):
    return pytest.importorskip(f"jaxiou.kernels.{NAMES[platform]}")


def interpreted(platform, function, *args):
    """What a kernel computes, in Pallas' interpreter."""
    if platform == "tpu":
        from jax.experimental.pallas import tpu

        interpreter = tpu.force_tpu_interpret_mode()
    else:
        from jax.experimental.pallas import mosaic_gpu

        interpreter = mosaic_gpu.force_gpu_interpret_mode()
    with interpreter:
        program = jax.jit(function).lower(*args)
    # Compiling takes longest, and is asked for nothing but the results.
    return program.compile({"xla_backend_optimization_level": 0})(*args)


def crowd(n, m):
    """Two images: every box twice, masked ones that would win or hold NaN, and NaN."""
    rng = np.random.default_rng(n)
    a, b = (rng.integers(0, 9, (2, s, 4)).astype(np.float32) for s in (n, m))
    a[..., 2:], b[..., 2:] = a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]
    for x in (a, b):
        half = x.shape[1] // 2
        x[:, half : 2 * half] = x[:, :half]
    where1, where2 = rng.random((2, n)) < 0.8, rng.random((2, m)) < 0.8
    where2[1] &= m < 99  # an image without targets
    b[:, ::3] = np.where(where2[:, ::3, None], b[:, ::3], a[:, :1])
    a[:, ::3] = np.where(where1[:, ::3, None], a[:, ::3], b[:, -1:])
    a[:, 1::3] = np.where(where1[:, 1::3, None], a[:, 1::3], np.nan)
    b[:, 1::3] = np.where(where2[:, 1::3, None], b[:, 1::3], np.inf)
    a[1, n // 2, 0] = np.nan
    return planes(a), planes(b), where1, where2


SIZES = [(300, 37), (1, 130)]


@pytest.fixture
def small(platform, monkeypatch):
    """Blocks so small that there are several along every axis."""
    kernel = module(platform)
    few = {"_MATCH_LANES": 256, "_MATCH_SUBLANES": 128, "_BLOCKS": 1}
    for name in few.keys() & vars(kernel).keys():
        monkeypatch.setattr(kernel, name, few[name])
    return kernel


@every_platform
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_best_match_is_that_of_xla(platform, size, small):
    arguments = crowd(*size)
    find = functools.partial(small.best_match, jaxiou.iou, ties=True)
    found = interpreted(platform, find, *arguments)
    wanted = jax.jit(functools.partial(xla.best_match, jaxiou.iou, ties=True))
    for name, x, y in zip(found._fields, found, wanted(*arguments), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@every_platform
def test_the_matrix_and_its_gradient_are_those_of_xla(platform, small):
    measure, size = jaxiou.giou, SIZES[0]
    a, b = (planes(random_boxes(k, 2, s, extent=30)) for k, s in enumerate(size))
    found = interpreted(platform, functools.partial(small.pairwise, measure), a, b)
    wanted = jax.jit(functools.partial(xla.pairwise, measure))(a, b)
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # a few ulp of the terms

    given = np.random.default_rng(0).normal(size=wanted.shape).astype(np.float32)
    back = functools.partial(small.pairwise_vjp, measure)
    found = interpreted(platform, back, a, b, given)
    wanted = jax.jit(functools.partial(xla.pairwise_vjp, measure))(a, b, given)
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        # Sums of hundreds of terms, in another order.
        np.testing.assert_allclose(x, y, atol=2e-6 * float(jnp.abs(y).max()))


# What runs where


def calls(program):
    """How many kernels of each platform a program calls."""
    lines = program.splitlines()
    return {p: sum(f"@{name}" in x for x in lines) for p, name in CALLS.items()}


def everything(a, b):
    """Three functions and a gradient, which take four kernels where one may run."""
    total = lambda a: (jaxiou.pairwise(a, b) ** 2).sum()  # noqa: E731
    return jaxiou.best_match(a, b), jaxiou.match_anchors(a, b), jax.grad(total)(a)


KERNELS = {"tpu": 1 + 2 + 1, "cuda": 1 + 2 + 2}  # ties take two, both sides too


def test_the_default_takes_kernels_where_a_program_is_for_one_device():
    sides = f32(64, 4), f32(9, 4)
    for platform in ("cpu", "rocm", "tpu"):
        found = calls(lowered(everything, *sides, platform=platform))
        expected = {p: KERNELS[p] if p == platform else 0 for p in KERNELS}
        assert found == expected, platform
    traced = jax.jit(everything).trace(*sides)
    program = traced.lower(lowering_platforms=("cpu", "tpu", "cuda")).as_text()
    assert calls(program) == KERNELS
    batches = f32(64, 4), f32(3, 9, 4)
    program = lowered(jax.vmap(everything, (None, 0)), *batches, platform="tpu")
    assert calls(program)["tpu"] == KERNELS["tpu"]


FIRST_CALL = """
import jax, jaxiou, numpy
traces = []
program = jax.jit(lambda a, b: (traces.append(1), jaxiou.best_match(a, b))[1])
for _ in range(2):
    program(*2 * [numpy.ones((5, 4), "f4")])
assert len(traces) == 1, traces
"""


def test_the_first_call_is_traced_once():
    """In a process of its own: what a trace imports is imported by then elsewhere."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", FIRST_CALL], env=environment, check=True)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_arrays_take_kernels_inside_of_shard_map_only(axes):
    a, b = random_boxes(1, 64, extent=30), random_boxes(2, 9, extent=30)

    def part(a, b):
        total = lambda a: (jaxiou.pairwise(a, b) ** 2).sum()  # noqa: E731
        return *jaxiou.best_match(a, b)[:2], jax.grad(total)(a)

    wanted = jax.jit(part)(a, b)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axes,))
    with jax.set_mesh(mesh):
        sides = [
            jax.device_put(x, NamedSharding(mesh, s))
            for x, s in ((a, P("d")), (b, P()))
        ]
        inside = jax.shard_map(part, in_specs=(P("d"), P()), out_specs=P("d"))
        for x, y in zip(jax.jit(inside)(*sides), wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)  # sums per device
        for function, some in ((part, False), (inside, True)):
            traced = jax.jit(function).trace(*sides)
            program = traced.lower(lowering_platforms=("tpu",)).as_text()
            assert bool(calls(program)["tpu"]) == some


def test_gradients_of_what_devices_share_are_summed():
    a, b = random_boxes(1, 16, extent=30), random_boxes(2, 4, extent=30)

    def shared(a, b):
        one = lambda b: jaxiou.pairwise(a, b).sum() + jaxiou.iou(a, b[:1]).sum()  # noqa: E731
        return jax.grad(one)(b)

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    over = jax.shard_map(shared, mesh=mesh, in_specs=(P("d"), P()), out_specs=P())
    # Sums in another order.
    wanted = jax.jit(shared)(a, b)
    np.testing.assert_allclose(jax.jit(over)(a, b), wanted, rtol=1e-5, atol=1e-6)


def test_the_gradient_has_a_gradient():
    a, b = random_boxes(1, 12, extent=9), random_boxes(2, 5, extent=9)

    def second(implementation):
        def first(a):
            of = functools.partial(jaxiou.pairwise, implementation=implementation)
            return jax.grad(lambda a: (of(a, b) ** 2).sum())(a).sum()

        return jax.jit(jax.grad(first))(a)

    np.testing.assert_array_equal(second(None), second("xla"))


def test_older_gpus_are_left_to_xla(monkeypatch):
    kernel = module("cuda")
    for capability, some in (("8.0", 0), ("9.0", 1), ("10.0", 1), ("12.0", 0)):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(kernel.jax, "devices", lambda _, d=device: [d])
        sides = f32(64, 4), f32(9, 4)
        program = lowered(lambda *x: jaxiou.best_match(*x), *sides, platform="cuda")
        assert calls(program)["cuda"] == some


@every_platform
def test_a_named_kernel_says_why_it_does_not_run(platform):
    a, b = random_boxes(1, 5, extent=9), random_boxes(2, 5, extent=9)
    name = NAMES[platform]
    with pytest.raises(NotImplementedError, match=f"{name} kernels run on '{platform}"):
        jaxiou.best_match(a, b, implementation=name)

    ordered = jaxiou.measure(lambda a, b: jnp.sort(a[0] - b[0]))
    with pytest.raises(NotImplementedError, match=f"{name} has no sort"):
        jaxiou.pairwise(a, b, measure=ordered, implementation=name)
    assert jaxiou.best_match(a, b, measure=ordered).values1.shape == (5,)


def test_the_detector_trains_with_kernels():
    dataset, config = tiny()
    parts = state.create(config, dataset.classes)
    batch = data.Batches(dataset, config.image_size, config.batch_size, 0)(0)
    graph, variables = nnx.split(parts)

    def step(variables, batch):
        parts = nnx.merge(graph, variables)
        losses = train.train_step(parts, batch, config.box_loss)
        return losses, nnx.state(parts)

    traced = jax.jit(step).trace(variables, batch)
    for platform in NAMES:
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        # The best targets twice, for the ties, and what lies on targets to ignore.
        assert calls(program)[platform] == 3


# Lowering and compiling


def all_measures():
    public = (getattr(jaxiou, name) for name in sorted(vars(jaxiou)))
    return list(dict.fromkeys([*MEMBERS, *(m for m in public if type(m) is Measure)]))


def functions(measure, platform):
    """The functions of a kernel by name, and the shapes they are lowered for."""
    options = {"measure": measure, "implementation": NAMES[platform]}
    sides = f32(300, measure.coordinates), f32(40, measure.coordinates)

    def back(a, b, given):
        pairwise = functools.partial(jaxiou.pairwise, **options)
        return jax.vjp(pairwise, a, b)[1](given)

    return {
        "best_match": (functools.partial(jaxiou.best_match, **options), *sides),
        "pairwise": (functools.partial(jaxiou.pairwise, **options), *sides),
        "pairwise_vjp": (back, *sides, f32(300, 40)),
    }


@every_platform
def test_every_measure_has_the_operations_of_every_kernel(platform):
    known = module(platform).OPERATIONS
    for measure in all_measures():
        for backward in (False, True):
            assert _blocks.operations(measure, backward) <= known, measure


@every_platform
@pytest.mark.parametrize("measure", [jaxiou.diou], ids=repr)
def test_lowers_every_function(platform, measure):
    for name, call in functions(measure, platform).items():
        assert f"jaxiou_{name}" in lowered(*call, platform=platform)


@pytest.mark.slow
@pytest.mark.kernels
@every_platform
@pytest.mark.parametrize("measure", all_measures(), ids=repr)
def test_lowers_every_measure(platform, measure):
    for name, call in functions(measure, platform).items():
        assert f"jaxiou_{name}" in lowered(*call, platform=platform)


def every_operation(a, b):
    """Each operation that kernels promise to know, once."""
    x, y = a[0] - b[0], jnp.abs(a[1] + b[1]) + 1
    positive = (x > y) | ~((x <= -y) & (x != 0)) ^ (x == y) | (x >= 3) & (x < 1)
    terms = [
        jnp.exp(-y),
        jnp.exp2(-y),
        jnp.log(y) / y,
        jnp.log1p(y),
        jnp.expm1(-y),
        jnp.sqrt(y),
        lax.rsqrt(y),
        jnp.sin(x) * jnp.cos(x),
        jnp.tan(x),
        jnp.tanh(x),
        jnp.square(x) + x**3,
        lax.sign(x),
        jnp.floor(x),
        lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
        jnp.maximum(jnp.minimum(x, 2), lax.clamp(-1.0, x, 1.0)),
        jnp.where(positive & jnp.isfinite(x), x, y),
        y**0.3,
        lax.stop_gradient(x),
        x.astype(jnp.int32).astype(jnp.float32),
        positive.astype(jnp.float32),
    ]
    return functools.reduce(jnp.add, terms)


@every_platform
def test_lowers_every_operation(platform):
    measure = jaxiou.measure(every_operation)
    used = _blocks.operations(measure, backward=False)
    assert _blocks.COMMON - used <= {"broadcast_in_dim", "copy", "copy_p"}
    function, *sides = functions(measure, platform)["best_match"]
    assert "jaxiou_best_match" in lowered(function, *sides, platform=platform)


@pytest.mark.parametrize(
    "name, low, high, ulp",
    [
        ("expm1", -20, 20, 4),
        ("log1p", -0.99, 20, 4),
        ("floor", -99, 99, 0),
        ("tan", -1.5, 1.5, 4),
        ("pow", 1e-6, 20, 5),
    ],
)
def test_arithmetic_in_place_of_operations(name, low, high, ulp):
    """Against double precision, also where 1 + x loses digits of x."""
    x = np.random.default_rng(0).uniform(low, high, 5000).astype(np.float32)
    x[:1000] *= 1e-5
    more = () if name != "pow" else (np.full_like(x, 1.7),)
    found = jax.jit(_blocks._ARITHMETIC[name])(x, *more)
    wide = [v.astype(np.float64) for v in (x, *more)]
    wanted = getattr(np, name.replace("pow", "power"))(*wide)
    error = np.abs(found - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
    assert error.max() <= ulp


def matching(a, b):
    """`best_match` with ties, as `match_anchors` calls it."""
    return matrix.match(
        matrix.Operands("match", jaxiou.giou, a, b, None, None), ties=True
    )


def gradient(a, b, given):
    return jax.vjp(functools.partial(jaxiou.pairwise, measure=jaxiou.giou), a, b)[1](
        given
    )


every_target = pytest.mark.parametrize("platform", ["cuda", "v5e", "v6e"])


@every_target
def test_compiled_kernels_write_no_matrix(platform, tmp_path, monkeypatch):
    n, m = 16800, 301
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    given = [f32(n, 4), f32(m, 4), f32(n, m)]
    # XLA writes a matrix as fast on a GPU: there the kernel has to be named.
    name = "mosaic_gpu" if platform == "cuda" else "mosaic_tpu"
    dense = functools.partial(jaxiou.pairwise, implementation=name)
    programs = [
        compiled(matching, *given[:2], platform=platform),
        compiled(gradient, *given, platform=platform),
        compiled(dense, *given[:2], platform=platform),
    ]
    for program in programs:
        assert "custom-call" in program.as_text()
        assert program.memory_analysis().temp_size_in_bytes < 0.1 * 4 * n * m
    if platform == "cuda":
        reports = [path.read_text() for path in tmp_path.glob("*.ptxas")]
        assert reports
        for report in reports:
            assert "0 bytes spill stores, 0 bytes spill loads" in report


@every_target
def test_four_devices_exchange_no_matrix(platform):
    mesh = Mesh(np.array(devices(platform, 4)), ("d",))
    part = jax.shard_map(
        lambda a, b: jaxiou.best_match(a, b)[:2],
        mesh=mesh,
        in_specs=(P("d"), P()),
        out_specs=P("d"),
    )
    specs = P("d"), P()
    program = compiled(
        part, f32(16384, 4), f32(512, 4), platform=platform, mesh=mesh, specs=specs
    )
    assert "custom-call" in program.as_text()
    assert "all-gather" not in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 0.1 * 16384 * 512
