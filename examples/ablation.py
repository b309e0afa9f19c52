"""What carries the detector: `python -m examples.ablation --help`.

Trains `examples/detector` with one choice changed at a time, with several seeds. Runs
of one seed start from the same weights and draw the same images, so choices are
compared within a seed, and by the validation images: the test images choose nothing.
"""

import dataclasses
from pathlib import Path

import tyro

from .detector.config import Config
from .loss_study import compared, compiled_once, complete, footing, prepared
from .page import fill, read

PAGE = Path(__file__).parents[1] / "docs" / "detector.md"
DEFAULTS = "defaults"
CHOICES = {
    DEFAULTS: {},
    "--no-augment": {"augment": False},
    "--assigner atss": {"assigner": "atss"},
}


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Trains the detector with one choice changed at a time; runs already made stay."""

    data: str = "digits"
    """`digits`, `coco:annotations.json[:images/]` or `voc:folder`."""
    seeds: int = 2
    """How many runs of each."""
    steps: int | None = None
    """Training steps of a run; by default 600 for digits and 300 for photographs."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels; by default those of the detector."""
    out: Path = Path("docs/detector")
    """Where `ablation.json` goes."""
    tables: bool = False
    """Train nothing; write the table of `out` into docs/detector.md."""


def run(study, base=Config()):  # noqa: B008, it is frozen
    """Makes the runs that are missing; returns all. `base` has what does not vary."""
    base, dataset, name, typed = prepared(study, base)
    wanted = []
    for seed in range(study.seeds):
        for choice, changed in CHOICES.items():
            key = dict(data=name, steps=base.steps, choice=choice, seed=seed)
            wanted.append((key, dataclasses.replace(base, seed=seed, **changed)))
    path, origin = study.out / "ablation.json", ("examples.ablation", typed)
    return complete(path, wanted, dataset, origin, split="val")


def tables(runs):
    """The block of the page, a table for each data set."""
    groups, parts = {}, []
    for each in runs or []:
        group = groups.setdefault((each["data"], each["steps"]), {})
        group.setdefault(each["choice"], {})[each["seed"]] = each
    for (name, steps), group in groups.items():
        parts.append(footing(name, steps, group))
        parts.append(compared(group, group.get(DEFAULTS, {}), "choice"))
    return {"ablation": "\n\n".join(parts)}


def main():
    study = tyro.cli(Ablation, prog="python -m examples.ablation")
    if study.tables:
        fill(tables(read(study.out / "ablation.json")), PAGE)
        return
    with compiled_once():
        runs = run(study)
    print(tables(runs)["ablation"])


if __name__ == "__main__":
    main()
