"""Runs of the detector: stopped, resumed, spread over devices, taken elsewhere."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from test_detector import OBJECTS, tiny, voc

from examples.detector import __main__ as main
from examples.detector import (
    command,
    data,
    evaluate,
    export,
    precision,
    predict,
    readers,
    state,
    train,
)
from examples.detector.assign import ASSIGNERS
from examples.detector.config import Config
from examples.detector.model import detect
from examples.detector.records import DataError, Record

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).parents[1]


def weights(model):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model))]


def photographs(folder):
    """Two images to learn from and one to test with, as the command line reads them."""
    voc(folder, OBJECTS, {"train": ["a", "b"], "val": ["c"]})
    return f"voc:{folder}"


def environment():
    """Of a process of its own, which compiles as quickly as this one."""
    chosen = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, **chosen, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def small(out, **more):
    """Of one length for all, so that the training step is compiled once."""
    return Config(
        out=out, steps=8, batch_size=8, image_size=(96, 96), width=32, digit_images=24,
        evaluations=1, save_every=3, devices=1, **more,
    )  # fmt: skip


def quiet(config, dataset, log=lambda line: None):
    config.out.mkdir(parents=True, exist_ok=True)
    return train.train(config, dataset, log)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, monkeypatch):
    dataset, _ = tiny()
    whole = weights(quiet(small(tmp_path / "whole"), dataset))
    stop = random.Random(0).randrange(4, 8)  # after the first checkpoint, at 3

    class Stopped(Exception):
        pass

    step, done = train.train_step, []

    def until(*args):
        if len(done) == stop:
            raise Stopped
        done.append(1)
        return step(*args)

    config = small(tmp_path / "stopped")
    monkeypatch.setattr(train, "train_step", until)
    with pytest.raises(Stopped):
        quiet(config, dataset)
    monkeypatch.setattr(train, "train_step", step)
    resumed = quiet(dataclasses.replace(config, resume=True), dataset)
    for x, y in zip(weights(resumed), whole, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    """Killed outright, perhaps while a checkpoint is written."""
    flags = (
        f"--data {photographs(tmp_path / 'data')} --image-size 96 96 --steps 20 "
        "--batch-size 4 --width 32 --evaluations 1 --save-every 1 --devices 1 "
        f"--out {tmp_path}"
    )
    start = [sys.executable, "-m", "examples.detector"]
    within = dict(cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    process = subprocess.Popen([*start, *flags.split()], **within)
    folder, patience = tmp_path / "checkpoints", time.monotonic() + 300
    while not (folder.is_dir() and any(x.name.isdigit() for x in folder.iterdir())):
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.05)
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "predictions.png").exists()
    again = [*start, "--resume", "--out", str(tmp_path)]
    subprocess.run(again, **within, check=True)
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["split"] == "test" and lines[-1]["step"] == 20
    assert [x.name for x in folder.iterdir() if x.name.isdigit()] == ["20"]


def test_a_new_run_in_an_old_folder_keeps_its_own_weights(tmp_path):
    dataset, _ = tiny()
    for seed, steps in ((1, 8), (2, 3)):
        config = dataclasses.replace(small(tmp_path), seed=seed, steps=steps)
        config.save(tmp_path / "config.json", dataset.classes)
        model = quiet(config, dataset)
        restored, _, _ = state.restore(tmp_path)
        for x, y in zip(weights(restored), weights(model), strict=True):
            np.testing.assert_array_equal(x, y)


def test_choices_are_written_when_old_checkpoints_are_gone(tmp_path, monkeypatch):
    """Killed before, a run would be resumed with the weights of another."""
    dataset, _ = tiny()
    config = small(tmp_path)
    config.save(tmp_path / "config.json", dataset.classes)

    def killed(manager):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "create", lambda *_: (None, None))
    monkeypatch.setattr(train, "clear", killed)
    with pytest.raises(KeyboardInterrupt):
        quiet(dataclasses.replace(config, seed=1), dataset)
    assert Config.load(tmp_path / "config.json")[0].seed == 0


def test_what_was_logged_after_the_checkpoint_is_logged_again(tmp_path):
    dataset, _ = tiny()
    config = small(tmp_path)
    quiet(config, dataset)
    config.save(tmp_path / "config.json", dataset.classes)
    lines = [{"step": 8, "loss": 1.0}, {"step": 9, "loss": 1.0}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 9, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    resumed, kept = main.resumed(config)
    assert kept == lines[:1] and resumed == dataclasses.replace(config, resume=True)
    with pytest.raises(DataError, match=r"--resume .*, without --steps 9"):
        main.resumed(dataclasses.replace(config, steps=9))
    # Its choices serve another run, which begins at its beginning.
    resumed.save(tmp_path / "config.json", dataset.classes)
    assert not Config.load(tmp_path / "config.json")[0].resume
    with pytest.raises(DataError, match="no checkpoint to go on from"):
        main.resumed(small(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    dataset, _ = tiny()
    step, done = train.train_step, []

    def failing(*args):
        done.append(args[1])
        losses = step(*args)
        return losses | {"loss": losses["loss"] * (np.nan if len(done) == 2 else 1)}

    monkeypatch.setattr(train, "train_step", failing)
    with pytest.raises(train.Diverged, match="loss of step 2 is nan"):
        quiet(small(tmp_path), dataset)
    with np.load(tmp_path / "diverged-0.npz") as kept:
        np.testing.assert_array_equal(kept["images"], done[1]["images"])
    assert not list(tmp_path.glob("checkpoints/[0-9]*"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    flags = ["detector", "--out", str(file / "run"), "--digit-images", "2"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit, match=r"error: .*Not a directory"):
        command.command(main.main)


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path):
    """The disk is full as far as that process can see: its files end at 100 kB."""
    code = f"""
from pathlib import Path
from examples.detector import command, config, state
small = config.Config(width=32, image_size=(96, 96))
parts = state.create(small, ("one", "two"))
with state.checkpoints(Path({str(tmp_path)!r})) as manager:
    command.command(lambda: state.save(manager, 3, parts))
"""
    limited = ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", sys.executable, "-c", code]
    within = dict(cwd=ROOT, env=environment(), capture_output=True, text=True)
    done = subprocess.run(limited, **within)
    assert done.returncode == 1
    expected = r"^error: .*checkpoints: step 3 could not be kept \(.*too large.*\)"
    assert re.search(expected, done.stderr, re.MULTILINE)
    assert "ValueError" not in done.stderr


def test_flags_override_the_file_which_overrides_defaults(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"loss": "ciou", "steps": 7, "image_size": [64, 96]}')
    config = main.arguments(["--config", str(path), "--steps", "9"])
    assert config == Config(loss="ciou", steps=9, image_size=(64, 96))
    faults = {
        '{"lass": "ciou"}': "lass",
        '{"loss": "best"}': "best",
        "[]": "not a JSON object",
        '{"image_size": [64]}': "two numbers",
        '{"image_size": [64, 0]}': "two numbers",
        '{"batch_size": -3}': "--batch-size must be at least 1",
        '{"workers": -1}': "--workers",
        '{"learning_rate": 0}': "--learning-rate",
    }
    for text, message in faults.items():
        path.write_text(text)
        with pytest.raises(DataError, match=rf"mine.json: .*{message}"):
            main.arguments(["--config", str(path)])


def test_devices_share_a_batch(tmp_path):
    """The same losses as on one device, but for the order of sums."""
    dataset, _ = tiny()
    found = []
    for count in (1, 4):
        lines = []
        config = dataclasses.replace(small(tmp_path / str(count)), devices=count)
        config = dataclasses.replace(config, steps=2)
        model = quiet(config, dataset, lines.append)
        found.append((lines[-1]["loss"], weights(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    for x, y in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)  # of steps of 4e-3
    with pytest.raises(DataError, match="--devices 3: there are 8"):
        train.sharing(dataclasses.replace(config, devices=3))


def in_two_processes(flags):
    """Runs the detector in both, until they end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{flags} --coordinator localhost:{port} --processes 2 --process"
    start = [sys.executable, "-m", "examples.detector", *flags.split()]
    within = dict(cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    both = [subprocess.Popen([*start, str(k)], **within) for k in (0, 1)]
    try:
        for process in both:
            _, text = process.communicate(timeout=400)
            assert process.returncode == 0, text.decode()[-2000:]
    finally:
        for process in both:
            process.kill()


@pytest.mark.slow
def test_processes_share_a_batch_and_go_on(tmp_path):
    source, out = photographs(tmp_path / "data"), tmp_path / "two"
    shape = "--image-size 96 96 --steps 3 --batch-size 8 --width 32"
    in_two_processes(f"--data {source} {shape} --evaluations 1 --out {out}")
    config = dataclasses.replace(small(tmp_path / "one"), steps=3, data=source)
    lines, dataset = [], data.load(config)
    quiet(data.completed(config, dataset), dataset, lines.append)
    written = (out / "metrics.jsonl").read_text().splitlines()
    two = [json.loads(line) for line in written]
    assert two[0]["step"] == lines[0]["step"] == 3
    assert two[0]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-3)
    assert two[-1]["split"] == "test"
    # Nothing is left to learn: the weights that both of them load are looked at again.
    in_two_processes(f"--resume --out {out}")
    again = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    two[-1].pop("seconds"), again[-1].pop("seconds")
    assert again == two


def test_averaged_gradients_are_those_of_a_larger_batch():
    dataset, config = tiny()
    batch = data.Batches(dataset, config.image_size, 8, 0)(0)
    found = []
    for count in (1, 2):
        chosen = dataclasses.replace(config, accumulate=count, steps=24 * count)
        parts = model, _ = state.create(chosen, dataset.classes)
        before = weights(model)
        for step in range(2 * count):  # the first rate is 0
            train.train_step(parts, batch, config.box_loss)
            changed = any(
                (x != y).any() for x, y in zip(weights(model), before, strict=True)
            )
            assert changed == (step == 2 * count - 1)
        found.append(weights(model))
    for x, y in zip(*found, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("choice", [{"precision": "bfloat16"}, {"remat": True}])
def test_other_ways_to_compute_give_about_the_same(choice):
    dataset, config = tiny()
    batch = data.Batches(dataset, config.image_size, 8, 0)(0)
    losses = []
    for chosen in (config, dataclasses.replace(config, **choice)):
        parts = state.create(chosen, dataset.classes)
        assert {x.dtype for x in weights(parts[0])} == {np.dtype("float32")}
        loss = train.train_step(parts, batch, config.box_loss)["loss"]
        assert loss.dtype == jnp.float32
        losses.append(float(loss))
    assert losses[1] == pytest.approx(
        losses[0], rel=1e-5 if "remat" in choice else 0.02
    )


def test_atss_teaches_the_detector_and_leaves_crowds_alone():
    dataset, config = tiny()
    batches = data.Batches(dataset, config.image_size, 8, 0)
    parts = state.create(config, dataset.classes)
    chosen = config.box_loss, 1.0, ASSIGNERS["atss"]
    losses = [float(train.train_step(parts, batches(0), *chosen)["loss"])]
    for _ in range(24):
        losses.append(float(train.train_step(parts, batches(0), *chosen)["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    batch = batches(1)
    none = np.zeros_like(batch["where"])
    loss = nnx.jit(lambda model, batch: train.detection_loss(model, batch, *chosen)[1])
    empty = loss(parts[0], batch | {"where": none})
    crowd = loss(parts[0], batch | {"ignore": ~none})
    assert empty["box_loss"] == crowd["box_loss"] == 0
    assert 0 < crowd["class_loss"] < empty["class_loss"]


def test_workers_prepare_the_same_batches():
    dataset, config = tiny()
    batches = data.Batches(dataset, config.image_size, 4, 0)
    for step, batch in enumerate(batches.run(2, 5, workers=2), 2):
        jax.tree.map(np.testing.assert_array_equal, dict(batch), batches(step))
    assert step == 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on disk."""
    folder = tmp_path_factory.mktemp("run")
    dataset, _ = tiny()
    config = small(folder)
    model = quiet(config, dataset)
    config.save(folder / "config.json", dataset.classes)
    return folder, model


def test_predict_writes_what_it_finds_and_names_what_it_cannot_read(
    trained, tmp_path, capsys
):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (120, 80), "white").save(images / name)
    (images / "c.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("not asked for")
    options = predict.Predict(trained[0], images, tmp_path / "out", least=0.0)
    entries = predict.predict(options)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == entries
    for entry in entries:
        assert entry["file_name"] == {1: "a.jpg", 2: "b.png"}[entry["image_id"]]
        x, y, w, h = entry["bbox"]
        assert 0 <= x <= x + w <= 120.01 and 0 <= y <= y + h <= 80.01
        assert entry["category"] == str(entry["category_id"] - 1)
    made = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert made == {"a.jpg.png", "b.png.png"}
    assert "c.png: not a readable image" in (printed := capsys.readouterr().out)
    assert "2 images" in printed and "1 images left out" in printed
    with pytest.raises(DataError, match="there are no images"):
        predict.predict(dataclasses.replace(options, images=tmp_path))
    with pytest.raises(DataError, match="there is no run"):
        predict.predict(dataclasses.replace(options, run=tmp_path))


def test_what_is_found_lies_inside_the_image(monkeypatch):
    """And not in what the network saw beside it, below row 64 of 96."""
    inside, across, beyond = [3, 8, 48, 32], [48, 32, 96, 80], [8, 70, 40, 90]
    boxes = np.zeros((precision.BATCH, 4, 4), np.float32)
    boxes[0, :3] = inside, across, beyond
    rest = np.zeros(boxes.shape[:2], int), np.ones(boxes.shape[:2])
    answer = boxes, *rest, np.ones(boxes.shape[:2], bool)
    monkeypatch.setattr(precision, "detect", lambda model, images: answer)
    nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)
    record = Record("a", np.zeros((80, 120, 3), np.uint8), (80, 120), *nothing)
    ((found, labels, scores),) = precision.find(None, [record], (96, 96))
    np.testing.assert_allclose(found, [[3.75, 10, 60, 40], [60, 40, 120, 80]])
    assert len(labels) == len(scores) == 2


def test_a_checkpoint_is_evaluated_on_images_of_its_classes(
    trained, tmp_path, monkeypatch, capsys
):
    folder, model = trained
    options = evaluate.Evaluate(folder, split="val")
    monkeypatch.setattr(evaluate, "load", lambda config: tiny()[0])
    report = evaluate.report_on(options)
    wanted, _ = precision.evaluate(model, tiny()[0].val, tiny()[0].classes, (96, 96))
    assert json.loads((folder / "val.json").read_text()) == report == wanted
    assert "4 val images of digits" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "load", data.load)
    other = dataclasses.replace(options, data=photographs(tmp_path))
    with pytest.raises(DataError, match=r"has the classes cat, dog; the run learned 0"):
        evaluate.report_on(other)


def test_all_images_of_another_folder_are_evaluated(trained, tmp_path, capsys):
    """Also those of a folder without splits, and with some of the classes alone."""
    folder, model = trained
    named = {
        name: [("7", corners, 0) for _, corners, _ in items]
        for name, items in OBJECTS.items()
    }
    voc(tmp_path, named, {})
    options = evaluate.Evaluate(folder, data=f"voc:{tmp_path}")
    report = evaluate.report_on(options)
    told = capsys.readouterr().out
    assert "has no splits: all of its images" in told and "3 test images" in told
    assert "serve as both" not in told
    dataset = readers.read_voc(tmp_path)
    records = [
        dataclasses.replace(r, labels=np.full(len(r.labels), 7))
        for r in (*dataset.train, *dataset.val)
    ]
    wanted, _ = precision.evaluate(model, records, tuple("0123456789"), (96, 96))
    assert report == wanted
    assert [k for k, v in report["classes"].items() if v["AP"] is not None] == ["7"]
    # Nobody has asked for all of a split, or for what the run has learned from.
    evaluate.report_on(dataclasses.replace(options, split="val"))
    assert "serve as both" in capsys.readouterr().out
    config, classes = Config.load(folder / "config.json")
    own = tmp_path / "run"
    shutil.copytree(folder, own)
    dataclasses.replace(config, data=f"voc:{tmp_path}").save(
        own / "config.json", classes
    )
    evaluate.report_on(
        evaluate.Evaluate(own, data=f"voc:{tmp_path}/../{tmp_path.name}")
    )
    assert "1 test images" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_classes(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "run")
    config, classes = Config.load(folder / "config.json")
    changed = dataclasses.replace(config, data=photographs(tmp_path / "data"))
    changed.save(tmp_path / "run" / "config.json", classes)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match=r"--resume: the classes of voc:.* are others"):
        main.run(dataclasses.replace(changed, out=tmp_path / "run", resume=True))


def test_an_exported_detector_needs_no_code_of_it(trained, tmp_path):
    folder, model = trained
    export.write(export.Export(folder, tmp_path / "detector.bin", ("cpu", "cuda")))
    loaded = jax.export.deserialize(bytearray((tmp_path / "detector.bin").read_bytes()))
    assert loaded.platforms == ("cpu", "cuda")
    for count in (1, 3):
        images = np.random.default_rng(count).integers(0, 255, (count, 96, 96, 3))
        images = images.astype(np.uint8)
        found, wanted = loaded.call(images), detect(model, images)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
