"""The study of numbers that turn: its images, its arithmetic, and a small run."""

import json
import math

import jax
import numpy as np
import pytest

import jaxiou
from examples import oriented
from examples.detector import digits

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick():
    """Programs that are compiled the quick way: they run for three steps."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_boxes_hold_the_ink_and_turn_with_it(monkeypatch):
    # On black, in white: what is bright is ink.
    monkeypatch.setattr(digits, "_texture", lambda rng: np.zeros((96, 96, 3), "f4"))
    monkeypatch.setattr(digits, "_colour", lambda rng, window: np.full(3, 255.0))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image, boxes = oriented.compose(rng, digits.samples()["train"])
        y, x = np.nonzero(image.min(-1) > 40)  # beyond the noise
        held = np.zeros(len(x), bool)
        for cx, cy, w, h, angle in boxes:
            dx, dy = x + 0.5 - cx, y + 0.5 - cy
            cos, sin = math.cos(angle), math.sin(angle)
            u, v = cos * dx + sin * dy, cos * dy - sin * dx
            inside = (abs(u) <= w / 2 + 1) & (abs(v) <= h / 2 + 1)
            held |= inside
            # Tight: the ink reaches the box's sides, faint as it may be there.
            assert np.ptp(u[inside]) > w - 5 and np.ptp(v[inside]) > h - 5
        assert len(x) and held.all()
        padded = np.pad(boxes, ((0, 3 - len(boxes)), (0, 0)))
        overlaps = jaxiou.pairwise(padded, padded, measure=jaxiou.rotated_iou)
        wanted = np.diag(np.arange(3) < len(boxes))
        np.testing.assert_allclose(overlaps, wanted, atol=1e-5)


def test_targets_have_the_longer_side_as_width():
    images, boxes, mask = oriented.dataset("val", 6, seed=1)
    assert images.shape == (6, 96, 96, 3) and boxes.shape == (6, 3, 5)
    seen = boxes[mask]
    assert (seen[:, 2] >= seen[:, 3]).all() and (boxes[~mask] == 0)[:, :4].all()
    assert (np.abs(seen[:, 4]) <= np.pi / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((0, 0, 4, 2, 0.1), 0.2),
        ((9, 9, 2, 4, 0.1 + math.pi / 2), 0.2),  # the same, described otherwise
        ((0, 0, 4, 2, 0.1 + 3 * math.pi), 0.2),
        ((0, 0, 2, 4, 0.3), math.pi / 2),
    ],
)
def test_angles_are_those_of_the_longer_side(box, wanted):
    assert oriented.apart(box, (0, 0, 5, 2, 0.3)) == pytest.approx(wanted)


def test_average_precision():
    hits, scores = np.array([True, False, True]), np.array([0.9, 0.8, 0.7])
    wanted = (1 + 2 / 3) / 4
    assert oriented.average_precision(hits, scores, 4) == pytest.approx(wanted)
    shuffled = oriented.average_precision(hits[[2, 0, 1]], scores[[2, 0, 1]], 4)
    assert shuffled == pytest.approx(wanted)


@pytest.mark.slow
def test_a_small_run_leaves_its_files(tmp_path, capsys, quick):
    config = oriented.Config("rotated IoU", 3, 8, 8, out=tmp_path)
    results = oriented.run(config, [])
    assert json.loads((tmp_path / "oriented.json").read_text()) == results
    assert (tmp_path / "oriented.png").stat().st_size > 10_000
    row = results["losses"]["rotated IoU"]
    assert all(0 <= row[key] <= 1 for key in ("AP", "AP50", "AP75", "AP90"))
    assert "| rotated IoU | " in oriented.table(results)
    with pytest.raises(SystemExit, match="nonsense"):
        oriented.run(oriented.Config("nonsense"))
