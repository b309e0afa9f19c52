"""The same answers with and without `jit`, and on boxes that nobody thought of."""

import chex
import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import random_boxes
from hypothesis import strategies

import jaxiou

N, M = 40, 7
ANCHORS, TARGETS = random_boxes(1, N), random_boxes(2, M)
SCORES = np.random.default_rng(3).permutation(N).astype(np.float32)
REAL = np.arange(M) < 5

FUNCTIONS = {
    "giou_loss": lambda: jaxiou.giou_loss(ANCHORS[:M], TARGETS, where=REAL),
    "pairwise": lambda: jaxiou.pairwise(ANCHORS, TARGETS, measure=jaxiou.ciou),
    "best_match": lambda: jaxiou.best_match(ANCHORS, TARGETS, where2=REAL),
    "match_anchors": lambda: jaxiou.match_anchors(ANCHORS, TARGETS, where=REAL),
    "nms": lambda: jaxiou.nms(ANCHORS, SCORES, threshold=0.3, max_outputs=12),
    "encode": lambda: jaxiou.encode(ANCHORS[:M], TARGETS),
    "jaccard_loss": lambda: jaxiou.jaccard_loss(
        SCORES[:M] / N, REAL.astype(np.float32), axis=None
    ),
}


class Variants(chex.TestCase):
    """Each function compiled as a whole, and operation by operation."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_jit_changes_no_index_and_no_value_by_more_than_rounding(self):
        for name, function in FUNCTIONS.items():
            with self.subTest(name):
                found = self.variant(function)()
                # The reference is computed one operation at a time, without the caches.
                with jax.disable_jit():
                    wanted = function()
                chex.assert_trees_all_equal_structs(found, wanted)
                chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
                # 4 ulp of values up to 1, losses and offsets up to 2 included.
                chex.assert_trees_all_close(found, wanted, rtol=5e-7, atol=5e-7)

    @chex.variants(with_jit=True, without_jit=True)
    def test_gradients_are_finite_trees_of_the_inputs(self):
        inputs = {"predictions": jnp.asarray(ANCHORS[:M]), "targets": TARGETS}

        def total(boxes):
            return jaxiou.diou_loss(**boxes, where=REAL).sum()

        gradients = self.variant(jax.grad(total))(inputs)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, inputs)
        chex.assert_tree_all_finite(gradients)
        masked = jax.tree.map(lambda gradient: gradient[~REAL], gradients)
        chex.assert_trees_all_equal(masked, jax.tree.map(jnp.zeros_like, masked))


# The first example compiles: time must not decide.
unhurried = hypothesis.settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
finite = strategies.floats(width=32, allow_nan=False, allow_infinity=False)
any_boxes = arrays.arrays(np.float32, (8, 4), elements=finite)


@pytest.mark.parametrize("name", ["iou", "iof", "giou", "diou", "ciou"])
def test_any_finite_boxes_have_a_value_in_the_range_and_a_finite_gradient(name):
    measure = getattr(jaxiou, name)
    both = jax.jit(
        lambda a, b: (
            measure(a, b),
            jax.grad(lambda a, b: measure(a, b).sum(), argnums=(0, 1))(a, b),
        )
    )

    @unhurried
    @hypothesis.given(any_boxes, any_boxes)
    def check(a, b):
        values, gradients = both(a, b)
        assert np.all(np.isfinite(values)), values
        assert np.all((values >= measure.minimum) & (values <= measure.maximum))
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)

    check()


def test_any_whole_numbered_boxes_have_the_exact_iou():
    whole = strategies.integers(-1000, 1000)
    compiled = jax.jit(jaxiou.iou)

    @unhurried
    @hypothesis.given(*[arrays.arrays(np.int32, (8, 4), elements=whole)] * 2)
    def check(a, b):
        found = compiled(a, b)
        wanted = [
            float(oracle.iou(oracle.exact(x), oracle.exact(y)))
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        # Areas below 2^24 are exact; larger ones, and the quotient, are rounded.
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=0)

    check()


@pytest.mark.parametrize("matrix", [False, True], ids=["pairs", "matrix"])
def test_second_derivatives_inside_of_a_loop(matrix):
    """JAX may take a residual that is an operand for a constant of the loop."""
    boxes = jnp.array([[0, 0, 2, 1], [1, 1, 3.25, 4.0]])
    other = jnp.array([[0.5, 0.25, 3, 3.5]])
    value = jaxiou.pairwise if matrix else jaxiou.iou

    def looped(boxes):
        def add(total, box):
            return total + (value(box[None], other) ** 2).sum(), None

        return jax.lax.scan(add, 0.0, boxes)[0]

    def whole(boxes):
        return sum((value(box[None], other) ** 2).sum() for box in boxes)

    def second(function):
        return jax.grad(lambda x: (jax.grad(function)(x) * boxes).sum())(boxes)

    np.testing.assert_allclose(second(looped), second(whole), rtol=1e-5, atol=1e-6)


def test_a_symbolic_number_of_images_can_be_exported():
    images = jax.export.symbolic_shape("b")[0]
    boxes = jax.ShapeDtypeStruct((images, 20, 4), jnp.float32)
    scores = jax.ShapeDtypeStruct((images, 20), jnp.float32)

    def run(boxes, scores):
        kept = jaxiou.nms(boxes, scores, threshold=0.5, max_outputs=6)
        return kept, jaxiou.match_anchors(boxes, boxes[:, :3])[:2]

    program = jax.export.export(jax.jit(run), platforms=("cpu", "cuda"))(boxes, scores)
    given = random_boxes(1, 3, 20, extent=40), np.linspace(0, 1, 60).reshape(3, 20)
    given = [np.asarray(x, np.float32) for x in given]
    found, wanted = program.call(*given), jax.jit(run)(*given)
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_array_equal(x, y)
