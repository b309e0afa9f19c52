"""Packs the numbers of a folder of golden vectors into tests/golden/.

    python tests/pack_golden.py FOLDER

FOLDER holds the JSON files that tests/golden/README.md describes. Of each file only
what the tests use is kept: inputs, arguments and results, without prose. The output
depends on the input alone, so packing twice changes nothing.
"""

import gzip
import json
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
PROSE = {
    "note",
    "peer",
    "source",
    "shape",
    "encode_float32",
    "verified_by_running_peer",
}


def numbers(value):
    """The same structure without entries of prose."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items() if k not in PROSE}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return value


def reported(content):
    """The cases of axis-aligned boxes; the thread they come from stays their name."""
    axis_aligned = content["axis_aligned"]
    nms = [case for case in content["nms"] if "fmt" not in case]
    for case in axis_aligned + nms:
        case["thread"] = case["source"]
    return {"axis_aligned": axis_aligned, "nms": nms}


def soft_jaccard(content):
    """The cases of the soft Jaccard formula without smoothing, and their masks."""
    cases = []
    for case in content["cases"]:
        if case["id"].startswith("soft_jaccard_formula"):
            case["losses"] = {"0.0": case["losses"]["0.0"]}
            cases.append(case)
    used = {case[key] for case in cases for key in ("pred_key", "target_key")}
    masks = {key: content["inputs"]["binary"][key] for key in sorted(used)}
    return {"inputs": {"binary": masks}, "cases": cases}


def axis_aligned_misc(content):
    """Without the rotated formats and the masks, which are not about these boxes."""
    left_out = ("masks_to_boxes", "cxcywhr", "xywhr", "xyxyxyxy")
    kept = [c for c in content["cases"] if not any(x in c["id"] for x in left_out)]
    return {"cases": kept}


def everything(content):
    """All cases and inputs."""
    kept = ("inputs", "metrics", "grad_pred", "cases")
    return {key: content[key] for key in kept if key in content}


def variants(content):
    """The axis-aligned variants in one box format each, Gaussian ones aside."""
    left_out = ("wasserstein", "NWD", "pixel", "piou/PIoU/cx", "piou/PIoU2/cx")
    kept = [
        case
        for case in content["cases"]
        if not case["id"].startswith(left_out)
        and not (case["id"].startswith("mmyolo") and case["id"].endswith("cxcywh"))
    ]
    inputs = {k: v for k, v in content["inputs"].items() if k != "pixel_pairs"}
    return {"inputs": inputs, "cases": kept}


def axis_aligned_ultralytics(content):
    """`bbox_iou` and `bbox_ioa`; rotated boxes and masks aside."""
    inputs = {k: v for k, v in content["inputs"].items() if k != "obb_pairs"}
    kept = [c for c in content["cases"] if c["id"].startswith("bbox_io")]
    return {"inputs": inputs, "cases": kept}


def overlap_suite(content):
    """The cases of mmdetection's own tests that are about overlaps."""
    kept = [c for c in content["cases"] if c["id"].startswith("bbox_overlaps/")]
    return {"cases": kept}


def suite(content):
    """The suite without its masks, whose image is not part of the numbers."""
    kept = [c for c in content["cases"] if "masks" not in c["id"]]
    return {"cases": kept}


SOURCES = {
    "exact_axis_aligned": everything,
    "torchvision_pairwise": everything,
    "torchvision_losses": everything,
    "torchvision_nms": everything,
    "torchvision_misc": axis_aligned_misc,
    "mmdet_overlaps": everything,
    "mmdet_losses": everything,
    "iou_variants": variants,
    "ultralytics_iou": axis_aligned_ultralytics,
    "suites/mmdet": overlap_suite,
    "mmdet_coders": everything,
    "detectron2_match": everything,
    "suites/torchvision": suite,
    "reported_cases": reported,
    "mask_losses": soft_jaccard,
}


def main(folder):
    """Writes one compressed file per source."""
    for name, select in SOURCES.items():
        content = json.loads((folder / f"{name}.json").read_text())
        text = json.dumps(numbers(select(content)), separators=(",", ":"))
        packed = gzip.compress(text.encode(), mtime=0)
        target = GOLDEN / f"{name.replace('/', '_')}.json.gz"
        target.write_bytes(packed)
        print(f"{target.name}: {len(packed):,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
