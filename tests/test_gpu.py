"""The kernels on an NVIDIA GPU, Hopper or newer: `pytest -m gpu`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import random_boxes
from members import MEMBERS
from test_kernels import crowd

import jaxiou
from jaxiou.kernels import xla

pytestmark = pytest.mark.gpu
NAME = "mosaic_gpu"
SIZES = [(1, 1), (5, 3), (300, 37), (1, 130), (16800, 301), (1000, 512)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(autouse=True)
def hopper():
    if float(getattr(jax.devices()[0], "compute_capability", 0)) < 9:
        pytest.skip("needs Hopper or newer")


def sides(n, m):
    return random_boxes(1, n, extent=60), random_boxes(2, m, extent=60)


@every_size
def test_the_matrix_is_that_of_double_precision(size):
    a, b = sides(*size)
    found = jax.jit(functools.partial(jaxiou.pairwise, implementation=NAME))(a, b)
    for i in np.linspace(0, size[0] - 1, 7).astype(int):
        wanted = [oracle.iou(a[i].astype(float), y.astype(float)) for y in b[:64]]
        # Division is approximate there: 2 ulp of 1.
        np.testing.assert_allclose(found[i, :64], wanted, atol=3e-7)


@pytest.mark.parametrize("measure", MEMBERS, ids=repr)
def test_every_measure_and_its_gradient_are_those_of_xla(measure):
    a, b = sides(300, 37)
    given = np.random.default_rng(0).normal(size=(300, 37)).astype(np.float32)

    def both(implementation):
        def run(a, b):
            pairwise = functools.partial(
                jaxiou.pairwise, measure=measure, implementation=implementation
            )
            values, pull = jax.vjp(pairwise, a, b)
            return values, *pull(jnp.asarray(given))

        return jax.jit(run)(a, b)

    for x, y in zip(both(NAME), both("xla"), strict=True):
        scale = float(jnp.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * scale)


@every_size
def test_best_match_is_that_of_xla(size):
    arguments = crowd(*size)
    kernel = pytest.importorskip("jaxiou.kernels.mosaic_gpu")
    of = lambda m: jax.jit(functools.partial(m.best_match, jaxiou.iou, ties=True))  # noqa: E731
    found, wanted = of(kernel)(*arguments), of(xla)(*arguments)
    # Values of two programs differ by an ulp, and with them which of two is the best.
    for x, y in ((found.values1, wanted.values1), (found.values2, wanted.values2)):
        np.testing.assert_allclose(x, y, rtol=5e-7)
    matrix = np.array(xla.pairwise(jaxiou.iou, *arguments[:2]))
    matrix[~np.isfinite(matrix)] = -np.inf
    keep = arguments[2][:, :, None] & arguments[3][:, None, :]
    matrix[~keep] = -np.inf
    rows, columns = matrix.max(2), matrix.max(1)
    for index, best, axis in (
        (found.indices1, rows, 2),
        (found.indices2, columns, 1),
    ):
        at = np.take_along_axis(
            matrix, np.expand_dims(np.maximum(index, 0), axis), axis
        )
        at = np.where(index < 0, -np.inf, at.squeeze(axis))
        np.testing.assert_allclose(at, best, rtol=5e-7)


def test_every_claimed_row_attains_its_column():
    arguments = crowd(1000, 37)
    kernel = pytest.importorskip("jaxiou.kernels.mosaic_gpu")
    run = jax.jit(functools.partial(kernel.best_match, jaxiou.iou, ties=True))
    found = run(*arguments)
    # The best row of every column that is better than nothing is one of the tied.
    for image in range(2):
        claims = np.asarray(found.values2[image] > 0)
        rows = np.asarray(found.indices2[image])[claims]
        assert np.asarray(found.tied1[image])[rows].all()


def on_the_cpu(function, *args):
    """The same function by the host, in loops and blocks of other sizes."""
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.jit(function)(*jax.device_put(args, jax.devices("cpu")[0]))


@pytest.mark.parametrize("measure", [jaxiou.iou, jaxiou.giou, jaxiou.ciou], ids=repr)
def test_losses_and_their_gradients_are_those_of_the_host(measure):
    a, b = sides(1000, 1000)

    def total(a, b):
        return jaxiou.box_loss(a, b, measure=measure).sum()

    run = jax.value_and_grad(total, argnums=(0, 1))
    found, wanted = jax.jit(run)(a, b), on_the_cpu(run, a, b)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5 * np.abs(y).max())


@pytest.mark.parametrize("images, n", [(1, 5000), (3, 700)])
def test_suppression_is_that_of_the_host(images, n):
    rng = np.random.default_rng(0)
    # Whole numbers, and a threshold that no quotient of those below 400² attains.
    boxes = rng.integers(0, 90, (images, n, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + 1 + boxes[..., 2:] // 3
    scores = rng.integers(0, n // 2, (images, n)).astype(np.float32)
    labels = rng.integers(0, 3, (images, n))

    def run(boxes, scores, labels):
        keep = dict(threshold=1 / np.pi, max_outputs=n)
        return jaxiou.nms(boxes, scores, labels=labels, **keep)

    found = jax.jit(run)(boxes, scores, labels)
    wanted = on_the_cpu(run, boxes, scores, labels)
    assert (np.asarray(found.valid).sum(axis=1) > 2000 // 5).all()
    np.testing.assert_array_equal(found.indices, wanted.indices)


def test_the_default_is_the_kernel():
    a, b = sides(1000, 37)
    program = jax.jit(jaxiou.best_match).lower(a, b).as_text()
    assert "jaxiou_best_match" in program
