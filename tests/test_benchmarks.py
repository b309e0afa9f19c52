"""The benchmarks: every job runs, agrees with plain loops, and ends in the tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import assigning
import numpy as np
import oracle
import oracle_turned
import pytest
import test_rescoring
from test_masks import lovasz_extension

import jaxiou
from benchmarks import measure, report, timing, workloads
from benchmarks.peers import PEERS

JOBS = workloads.jobs(tiny=True, larger=True)
COMPILING = ("torch.compile", "pykeops")


def name(job):
    return f"{job.family} {job.case} {job.workload}"


def wanted(job, inputs):
    """What plain loops say, and where it stands in the result; None for gradients."""
    match job.family, job.case:
        case "pairwise", "forward":
            return [(0, oracle.matrix(oracle.iou, *inputs))]
        case "pairwise", "vjp":
            return []
        case _, assigner if assigner in workloads.ASSIGNERS:
            return wanted_assignment(job, inputs)
        case "losses", "decoded giou":
            values = oracle.elementwise(oracle.giou, decoded(*inputs[:2]), inputs[2])
            return [(0, (1 - values).sum())]
        case "losses", measure_name:
            values = oracle.elementwise(getattr(oracle, measure_name), *inputs)
            return [(0, (1 - values).sum())]
        case "masks", "lovasz":
            p, t = inputs
            p, t = (np.moveaxis(x, 1, -1).reshape(-1, job.n) for x in (p, t > 0))
            rows = zip(np.abs(t - p.astype(float)), t, strict=True)
            return [(0, sum(lovasz_extension(*row) for row in rows))]
        case "masks", measure_name:
            p, t = (x.astype(float) for x in inputs)
            weight = {"jaccard": 1, "dice": 0.5}[measure_name]
            shared, both = (p * t).sum(1), (p + t).sum(1)
            whole = shared + weight * (both - 2 * shared)
            return [(0, (1 - shared / whole).sum())]
        case "rotated", "forward":
            a, b = (x.astype(float) for x in inputs)
            return [(0, oracle.matrix(oracle_turned.rotated_iou, a, b))]
        case "rotated", "losses":
            pairs = zip(*(x.astype(float) for x in inputs), strict=True)
            return [(0, sum(1 - oracle_turned.rotated_iou(*pair) for pair in pairs))]
        case "rotated", _:
            return []
        case "nms", _:
            kept = np.full((job.images, job.n), -1)
            for k, image in enumerate(zip(*inputs, strict=True)):
                found = oracle.nms(*image, 0.5)
                kept[k, : len(found)] = np.array(found) + k * job.n
            return [(0, kept.ravel())]
        case "rescoring", case:
            boxes, scores = (x.astype(float) for x in inputs)
            found = getattr(test_rescoring, case)(
                assigning.matrix_of(boxes, boxes), scores, jaxiou.GaussianDecay(), -1.0
            )
            return [(0, [score for _, score in found])]
        case "evaluation", _:
            return []  # pycocotools and faster-coco-eval are asked
    matrices = [oracle.matrix(oracle.iou, a, b) for a, b in zip(*inputs, strict=True)]
    if job.case == "match_anchors":
        return [(0, [oracle.match(x, 0.5, 0.4, force=True) for x in matrices])]
    return [(k, [x.max(1 - k // 2) for x in matrices]) for k in (0, 2)]


def wanted_assignment(job, inputs):
    found = []
    for image in zip(*inputs, strict=True):
        match job.case:
            case "atss":
                index = assigning.atss(*image, workloads.level_sizes(job.n), 9)
                found.append((index,))
            case "task_aligned":
                found.append(assigning.task_aligned(*image))
            case "simota":
                index = assigning.simota(*image[:-1], strides=image[-1])
                found.append((index,))
    return enumerate(zip(*found, strict=True))


def decoded(deltas, anchors):
    deltas, anchors = deltas.astype(float), anchors.astype(float)
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + sides * (deltas[:, :2] + 0.5)
    halves = sides * np.exp(deltas[:, 2:]) / 2
    return np.concatenate([centres - halves, centres + halves], 1)


@pytest.mark.parametrize("job", JOBS, ids=name)
def test_every_job_agrees(job):
    """jaxiou with plain loops; `prepare` drops whoever does not agree with jaxiou."""
    calls, notes = measure.prepare(job, [x for x in PEERS if x not in COMPILING])
    assert not [text for text in notes.values() if "differ" in text], notes
    assert "jaxiou" in calls
    assert ("naive JAX" in calls) == (job.family not in ("memory", "evaluation"))
    if job.family == "evaluation":
        assert {"pycocotools", "faster-coco-eval"} & set(calls)
    found = measure.flat(calls["jaxiou"].run())
    for k, values in wanted(job, job.inputs()):
        # float32 against float64; the loss is a sum of up to 4,000 of them.
        np.testing.assert_allclose(found[k], values, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compilers' own
@pytest.mark.parametrize("peer", COMPILING)
def test_peers_that_compile_agree(peer):
    pytest.importorskip(PEERS[peer][0])
    chosen = [job for job in JOBS if job.images == 1 or job.family == "masks"]
    jobs = {(job.family, job.case): job for job in chosen}
    for job in jobs.values():
        assert not measure.prepare(job, [peer])[1]


@pytest.mark.parametrize(
    "case", ["forward", "best_match", "match_anchors", "giou", "random", "atss"]
)
def test_a_peer_with_other_answers_is_not_timed(case):
    job = next(job for job in JOBS if job.case == case)
    inputs = job.inputs()
    good = measure.IMPLEMENTATIONS["jaxiou"](job, inputs)
    answers = [np.array(x) for x in measure.flat(good.run())]

    def other():
        changed = [x.copy() for x in answers]
        if case == "best_match":
            changed[1][:] = (changed[1] + 1) % job.m  # right values, wrong partners
        else:
            changed[0] = changed[0] + np.ones((), changed[0].dtype)
        return changed

    calls, notes = {"jaxiou": good, "same": good, "other": timing.Call(other)}, {}
    measure.check(job, inputs, calls, notes)
    assert {*calls} == {"jaxiou", "same"} and "differ" in notes["other"]


def test_the_shapes_are_those_announced():
    full = {name(job): job for job in workloads.jobs(larger=True)}
    assert len(full) == len(JOBS) == len({name(job) for job in JOBS})
    for key, (n, m) in workloads.WORKLOADS.items():
        same = [job for job in full.values() if key in job.workload]
        assert same and all((job.n, job.m) == (n, m) for job in same)
    assert [job.family for job in workloads.jobs(["nms"])] == ["nms"] * 5


def test_about_half_of_the_random_boxes_survive():
    boxes, scores = workloads.candidates(np.random.default_rng(1), "random", 1_000)
    assert 0.4 < len(oracle.nms(boxes, scores, 0.5)) / 1_000 < 0.6


def test_slow_implementations_take_part_in_fewer_rounds():
    calls = {"a": timing.Call(lambda: None, scale=2.0), "b": timing.Call(lambda: None)}
    usual, rng = {"a": 0.001, "b": 9.0}, np.random.default_rng(0)
    times = timing.interleaved(calls, usual, 5, 1.0, rng)
    assert [len(x) for x in times.values()] == [5, 3]


def test_an_accelerator_works_off_a_queue_that_is_waited_for_once():
    events = []
    call = timing.Call(lambda: events.append("run"), wait=lambda _: events.append("."))
    rng = np.random.default_rng(0)
    timing.interleaved({"a": call}, {"a": 0.005}, 1, 1.0, rng, queue=True)
    assert events == ["run", ".", "run", "run", "."]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_call():
    held = np.ones(1 << 24)
    elapsed, peak = timing.first_look(timing.Call(lambda: np.ones(1 << 23)[:1].copy()))
    assert elapsed > 0
    if peak is None:
        pytest.skip("the high-water mark cannot be set back here")
    assert abs(peak - held.nbytes / 2) < 8 << 20, peak


def results():
    def row(implementation, case, regime, ms, family="pairwise", **more):
        shared = dict(family=family, case=case, workload="long", pairs=30_000_000)
        return dict(
            shared, traffic=120_000_000, implementation=implementation, regime=regime,
            ms=ms, temporary_bytes=1_500_000, peak_bytes=None, **more,
        )  # fmt: skip

    rows = [
        row("jaxiou", "forward", "warm", [10.0, 20.0, 30.0]),
        row("limit", "forward", "warm", [5.0, 10.0, 15.0]),
        row("torchvision", "forward", "warm", [100.0, 300.0]),
        row("jaxiou", "best_match", "warm", [10.0], "match"),
        row("limit", "best_match", "warm", [1.0], "match"),
        {**row("numpy", "forward", "warm", []), "note": "its matrix has 8 GB"},
    ]
    del rows[-1]["ms"]
    head = dict(date="2026-01-02", device="A (b) 2", platform="cpu", commit="c0ffee")
    return {"head": head | dict(versions={"jax": "9"}, command="x"), "rows": rows}


def test_tables_and_picture(tmp_path):
    path = report.save(results(), tmp_path)
    assert path.name == "a-b-2-2026-01-02.json"
    assert json.loads(path.read_text()) == results()
    text = report.tables(results())
    # Ratios are paired: 100 / 10 and 300 / 20, not 200 / 20.
    assert "| 20 (10–30) | 10 (5–15) 0.5× | 200 (100–300) 12× |" in text
    assert "- numpy, forward long: its matrix has 8 GB." in text
    first = "<!-- figures: headline -->\nold\n<!-- end of figures -->"
    page = report.page(f"before\n{first}\nafter", [results()])
    assert "| pairwise forward long | 20 | 50% |  | 12× |" in page
    assert (
        page.startswith("before\n") and page.endswith("\nafter") and "old" not in page
    )
    assert report.page(page, [results()]) == page
    report.plot(results(), tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.parent.name)
def test_the_figures_in_the_pages_are_the_committed_results(path):
    text = path.read_text()
    assert report.BLOCK.search(text)
    assert report.page(text, report.committed()) == text, (
        "python -m benchmarks --tables"
    )


def test_the_command_line(tmp_path):
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    options = f"--tiny --only memory --rounds 1 --json {out} --plot {picture}"
    command = [sys.executable, "-m", "benchmarks", *options.split()]
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, check=True, cwd=root, env=environment)
    found = json.loads(out.read_text())
    assert {row["regime"] for row in found["rows"]} == {"fresh", "warm"}
    assert all(row["ms"][0] > 0 for row in found["rows"])
    assert found["head"]["versions"]["jax"] and found["head"]["command"].endswith(
        ".png"
    )
    assert picture.stat().st_size > 0
    wrong = [sys.executable, "-m", "benchmarks", "--only", "speed"]
    failed = subprocess.run(wrong, capture_output=True, text=True, cwd=root)
    assert failed.returncode and "there are pairwise" in failed.stderr
