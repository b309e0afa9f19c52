"""The studies of `examples`: they run when small, and their arithmetic is right."""

import dataclasses
import json
import re

import numpy as np
import pytest

from examples import ablation, loss_study, page, regression_study, throughput
from examples.detector import data, precision
from examples.detector.config import LOSSES, Config

pytestmark = pytest.mark.usefixtures("quick")

HEAD = {
    "command": "python -m it",
    "date": "2026-01-01",
    "device": "a machine",
    "commit": "abc",
    "versions": {"jax": "0"},
    "areas": {"small": [0, 10], "medium": [10, 20], "large": [20, 1e10]},
}

# Regression


def test_the_cases_are_those_of_the_paper():
    centres, shapes, targets = regression_study.cases(1000, seed=0)
    assert 5000 * len(shapes) * len(targets) == 1_715_000
    distance = np.linalg.norm(centres - 10, axis=-1)
    assert distance.max() < 3 and abs(np.median(distance) - 3 / 2**0.5) < 0.1
    np.testing.assert_allclose(targets[:, 2:].prod(1), 1)
    np.testing.assert_allclose(targets[0], [10, 10, 0.5, 2])
    areas = np.repeat(regression_study.AREAS, 7)
    np.testing.assert_allclose(shapes.prod(1), areas, rtol=1e-6)
    rates = regression_study.rates(200)
    wanted = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(rates[[0, 159, 160, 179, 180, 199]], wanted)


# The steepest overshoot; the weight of the other takes part in its gradient.
STRAY = {"log_iou", "piou_v2"}
KINDS = ["iou", "giou", "smooth_iou", "nwd", "smooth_l1"]


@pytest.mark.parametrize("name", [*KINDS, *sorted(STRAY)])
def test_losses_bring_boxes_nearer(name):
    config = regression_study.Config(points=5, iterations=5)
    row, errors = regression_study.simulate(name, config)
    assert errors.shape == (5,) and np.isfinite(errors).all()
    assert len(row["curve"]) == 5 and np.isfinite(row["curve"]).all()
    np.testing.assert_allclose(row["curve"][-1], errors.sum() * 343, rtol=1e-3)
    assert (row["curve"][-1] < row["curve"][0]) == (name not in STRAY)


@pytest.mark.parametrize("name", regression_study.LOSSES)
def test_every_loss_has_a_slope_between_overlapping_boxes(name):
    # A gap of -0.5: the boxes share half of their width.
    found = regression_study.slopes(regression_study.LOSSES[name], np.float32([-0.5]))
    assert np.isfinite(found).all() and (found > 1e-4).all()


def test_points_that_fill_no_block_count_once(monkeypatch):
    monkeypatch.setattr(regression_study, "BLOCK", 4)
    config = regression_study.Config(points=6, iterations=2)
    row, errors = regression_study.simulate("l1", config)
    monkeypatch.setattr(regression_study, "BLOCK", 6)
    whole, expected = regression_study.simulate("l1", config)
    np.testing.assert_allclose(errors, expected, rtol=1e-5)
    assert row["curve"] == pytest.approx(whole["curve"], rel=1e-3)


def test_a_regression_run_leaves_its_files(tmp_path, capsys):
    config = regression_study.Config(
        points=5, iterations=5, losses="iou,giou", out=tmp_path
    )
    results = regression_study.run(config)
    assert page.read(tmp_path / "regression.json") == json.loads(json.dumps(results))
    for name in ("curves", "surface", "gradients"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    rows = regression_study.table(results).splitlines()
    assert rows[2].startswith("| `giou` |") and rows[3].startswith("| `iou` |")
    with pytest.raises(SystemExit, match="nonsense"):
        regression_study.run(regression_study.Config(losses="iou,nonsense"))


def test_the_overlap_alone_draws_no_boxes_together():
    gaps = np.float32([0.1, 1, 10])
    losses = regression_study.LOSSES
    assert not regression_study.slopes(losses["iou"], gaps).any()
    for name in ("giou", "diou", "extended_iou", "smooth_iou"):
        found = regression_study.slopes(losses[name], gaps)
        assert (found > 1e-3).all() and (np.diff(found) < 0).all()


# Detectors


def made(loss, weight, seed, score):
    """A run as it is kept."""
    key = {"data": "digits", "steps": 9, "loss": loss, "weight": weight, "seed": seed}
    sizes = {size: score for size in loss_study.SIZES}
    scores = {"AP": score, "AP50": score, "AP75": score, "sizes": sizes}
    return {**key, **scores, "seconds": 1.0, "head": HEAD}


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.9, 3: 0.1}, {2: 0.7, 0: 0.4, 1: 0.6}
    mean, error = loss_study.paired(ours, theirs)
    assert mean == pytest.approx(0.4 / 3)
    # The differences 0.1, 0.1, 0.2 have the standard deviation 1/30 √3.
    assert error == pytest.approx(1 / 30)
    assert loss_study.paired({0: 0.5}, {0: 0.4, 1: 0.5}) is None


@pytest.mark.parametrize(
    ("mean", "error", "expected"),
    [
        (0.019, 0.01, "no difference"),
        (0.02, 0.01, "better"),
        (-0.03, 0.01, "worse"),
        (0.0, 0.0, "no difference"),
    ],
)
def test_verdicts(mean, error, expected):
    assert loss_study.verdict(mean, error) == expected


def test_spread():
    assert loss_study.spread([0.5]) == "0.500"
    assert loss_study.spread([0.4, None, 0.6]) == "0.500 ± 0.141"
    assert loss_study.spread([None]) == "–"


def test_runs_that_share_a_setting_are_made_once():
    study = loss_study.Study(losses="iou,giou", weights="0.25,4", seeds=2)
    found = loss_study.settings(study)
    assert len(found) == len(set(found)) == 2 * 4
    assert found[:2] == [("iou", 1.0, 0), ("giou", 1.0, 0)]
    assert set(loss_study.LOSSES) <= set(LOSSES)


def test_tables_of_runs_fill_the_page(tmp_path):
    scores = {"giou": (0.50, 0.52), "iou": (0.40, 0.42), "ciou": (0.51, 0.51)}
    runs = [made(n, 1.0, s, x) for n, xs in scores.items() for s, x in enumerate(xs)]
    runs += [made("giou", 4.0, seed, 0.6) for seed in (0, 1)]
    copy = tmp_path / "page.md"
    copy.write_text(page.PAGE.read_text())
    before = re.search(r"figures: regression -->.*?<!-- end", copy.read_text(), re.S)[0]
    page.fill(loss_study.tables(runs), copy)
    text = copy.read_text()
    assert before in text
    assert "| `iou` | 0.410 ± 0.014 |" in text and "-0.100 ± 0.000, worse |" in text
    assert "+0.000 ± 0.010, no difference |" in text
    assert "| `4` | 0.600 ± 0.000 |" in text and "+0.090 ± 0.010, better |" in text
    assert "boxes are medium from 10 to 20 square pixels" in text
    page.fill(loss_study.tables(None), copy)
    assert "| `4` |" not in copy.read_text() and "Not measured yet." in copy.read_text()


def test_the_page_holds_what_was_measured(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(page.PAGE.read_text())
    docs = page.PAGE.parent
    results = page.read(docs / "regression" / "regression.json")
    page.fill({"regression": regression_study.table(results)}, copy)
    page.fill(loss_study.tables(page.read(docs / "which_loss" / "runs.json")), copy)
    assert copy.read_text() == page.PAGE.read_text()
    for name in re.findall(r"!\[.*?\]\((.*?)\)", copy.read_text()):
        assert (docs / name).exists()


def test_an_ablation_changes_one_choice_at_a_time(tmp_path, monkeypatch):
    asked = []

    def quick(config, dataset, limits, split):
        asked.append((config, split))
        scores = dict.fromkeys(loss_study.METRICS, 0.5 + config.seed / 10)
        return {**scores, "sizes": dict.fromkeys(loss_study.SIZES), "seconds": 1.0}

    monkeypatch.setattr(loss_study, "one", quick)
    base = Config(digit_images=2)
    study = ablation.Ablation(steps=2, out=tmp_path)
    runs = ablation.run(study, base)
    assert len(ablation.run(study, base)) == len(asked) == len(runs)
    assert len(runs) == 2 * len(ablation.CHOICES)
    assert {split for _, split in asked} == {"val"}
    for seed in (0, 1):
        defaults, *others = (c for c, _ in asked if c.seed == seed)
        for other in others:
            changed = vars(other).items() - vars(defaults).items()
            assert len(changed) == 1
    text = ablation.tables(runs)["ablation"]
    assert "| `defaults` | 0.550 ± 0.071 |" in text
    assert "| `--no-augment` |" in text and "+0.000 ± 0.000, no difference |" in text


def test_the_page_of_the_detector_holds_what_was_measured(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(ablation.PAGE.read_text())
    for study, name in ((ablation, "ablation"), (throughput, "throughput")):
        made = page.read(ablation.PAGE.parent / "detector" / f"{name}.json")
        page.fill(study.tables(made), copy)
    assert copy.read_text() == ablation.PAGE.read_text()


def test_throughput_of_every_number_of_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "measure", lambda config, *_: 2 / config.devices)
    rows = throughput.run(throughput.Throughput())
    assert [row["devices"] for row in rows] == 2 * [1, 2, 4, 8]
    assert [row["images_per_second"] for row in rows[:4]] == [8, 16, 32, 64]
    text = throughput.tables(rows)["throughput"]
    assert "| float32 | 8.0 | 16.0 | 32.0 | 64.0 |" in text


def test_average_precision_by_area():
    base = Config(digit_images=12)
    dataset = data.load(base)
    records = dataset.test[:40]
    limits = loss_study.areas(dataset)
    assert limits["small"][1] == limits["medium"][0] < limits["large"][0]
    found = []
    for record in records:
        area = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1)
        kept = area > limits["large"][0]  # only the large ones are found
        found.append((record.boxes[kept], record.labels[kept], np.ones(kept.sum())))
    report = precision.average_precision(records, found, dataset.classes, limits)
    assert report["sizes"] == {"small": 0, "medium": 0, "large": 1}
    assert 0 < report["AP"] < 1


@pytest.mark.slow
def test_a_study_writes_every_run_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    base = Config(width=32, digit_images=16, image_size=(48, 48), batch_size=4)
    study = loss_study.Study(losses="smooth_l1", weights="", seeds=1, steps=2)
    study = dataclasses.replace(study, out=tmp_path)
    (first,) = loss_study.run(study, base)
    (kept,) = page.read(tmp_path / "runs.json")
    assert kept == json.loads(json.dumps(first))
    assert first["loss"] == "smooth_l1" and 0 <= first["AP"] <= 1

    asked = []

    def quick(config, *rest):
        asked.append((config.loss, config.box_weight, config.seed))
        scores = dict.fromkeys(loss_study.METRICS, 0.5)
        return {**scores, "sizes": {}, "seconds": 1.0}

    monkeypatch.setattr(loss_study, "one", quick)
    more = dataclasses.replace(study, losses="smooth_l1,nwd", weights="4")
    runs = loss_study.run(more, base)
    assert asked == [("nwd", 1, 0), ("giou", 1, 0), ("giou", 4, 0)]
    assert len(runs) == 4 and len(page.read(tmp_path / "runs.json")) == 4
    loss_study.run(more, base)
    assert len(asked) == 3

    # What was seen at another size is another row of results.
    smaller = dataclasses.replace(study, image_size=(32, 32))
    made = loss_study.run(smaller, base)[-1]
    assert (made["data"], made["steps"]) == ("digits-32x32", 2) and len(asked) == 4
    assert made["head"]["command"].endswith("--steps 2 --image-size 32 32")
