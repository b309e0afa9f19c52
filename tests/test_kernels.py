"""The kernels without their accelerators: interpreted, lowered, and compiled ahead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead import NEW_ENOUGH
from cases import random_boxes

import jaxiou
from jaxiou.kernels import xla

pytestmark = pytest.mark.skipif(not NEW_ENOUGH, reason="the kernels need jax 0.11")
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

        with tpu.force_tpu_interpret_mode():
            return jax.jit(function)(*args)
    from jax.experimental.pallas import mosaic_gpu

    with mosaic_gpu.force_gpu_interpret_mode():
        return jax.jit(function)(*args)


def crowd(n, m):
    """Two images: many equal values, masked boxes that hold NaN, and one that is."""
    rng = np.random.default_rng(n)
    a, b = (rng.integers(0, 9, (2, s, 4)).astype(np.float32) for s in (n, m))
    a[..., 2:], b[..., 2:] = a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]
    where1, where2 = rng.random((2, n)) < 0.8, rng.random((2, m)) < 0.8
    a[~where1], b[~where2] = np.nan, np.inf
    a[1, n // 2, 0] = np.nan
    where2[1] &= m < 99  # an image without targets
    return planes(a), planes(b), where1, where2


SIZES = [(300, 37), (5, 1), (1, 130)]


@every_platform
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_best_match_is_that_of_xla(platform, size):
    arguments = crowd(*size)
    kernel = module(platform)
    find = functools.partial(kernel.best_match, jaxiou.iou, ties=True)
    found = interpreted(platform, find, *arguments)
    wanted = jax.jit(functools.partial(xla.best_match, jaxiou.iou, ties=True))
    for name, x, y in zip(found._fields, found, wanted(*arguments), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@every_platform
@pytest.mark.parametrize("size", SIZES[:1], ids=str)
@pytest.mark.parametrize("measure", [jaxiou.ciou], ids=repr)
def test_the_matrix_and_its_gradient_are_those_of_xla(platform, measure, size):
    a, b = (planes(random_boxes(k, 2, s, extent=30)) for k, s in enumerate(size))
    kernel = module(platform)
    found = interpreted(platform, functools.partial(kernel.pairwise, measure), a, b)
    wanted = jax.jit(functools.partial(xla.pairwise, measure))(a, b)
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # a few ulp of the terms

    given = np.random.default_rng(0).normal(size=wanted.shape).astype(np.float32)
    back = functools.partial(kernel.pairwise_vjp, measure)
    found = interpreted(platform, back, a, b, given)
    wanted = jax.jit(functools.partial(xla.pairwise_vjp, measure))(a, b, given)
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        # Sums of hundreds of terms, in another order.
        np.testing.assert_allclose(x, y, atol=2e-6 * float(jnp.abs(y).max()))
