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

import numpy as np

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
    """The cases; the thread they come from stays their name."""
    axis_aligned, rotated = content["axis_aligned"], content["rotated"]
    nms = [case for case in content["nms"] if "fmt" not in case]
    for case in axis_aligned + rotated + nms:
        case["thread"] = case["source"]
    return {"axis_aligned": axis_aligned, "rotated": rotated, "nms": nms}


def mask_losses(content):
    """The formulas; Jaccard and Dice without smoothing."""
    cases = [c for c in content["cases"] if c["function"] == "formula"]
    for case in cases:
        if "losses" in case:
            case["losses"] = {"0.0": case["losses"]["0.0"]}
    used = {case[key] for case in cases for key in ("pred_key", "target_key")}
    masks = {key: content["inputs"]["binary"][key] for key in sorted(used)}
    return {"inputs": {"binary": masks}, "cases": cases}


def lovasz(content):
    """The authors' losses, several classes where it is softmax."""
    wanted = ("lovasz_hinge", "lovasz_softmax")
    cases = [
        c
        for c in content["cases"]
        if c["function"] in wanted and "1class" not in c["id"]
    ]
    return {"inputs": content["inputs"], "cases": cases}


def coco_masks(content):
    """Masks of 0 and 1, and their IoU with and without crowds."""
    masks = {
        key: [
            [[*map(int, row)] for row in mask]
            for mask in content["inputs"]["masks"][key]
        ]
        for key in ("dt_masks", "gt_masks")
    }
    cases = [c for c in content["cases"] if "/rle/" in c["id"] and "output" in c]
    return {"inputs": {"masks": masks}, "cases": cases}


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


def ultralytics(content):
    """`bbox_iou`, `bbox_ioa` and ProbIoU, and their boxes; masks aside."""
    wanted = ("bbox_io", "probiou/CIoU=False")
    kept = [c for c in content["cases"] if c["id"].startswith(wanted)]
    return {"inputs": content["inputs"], "cases": kept}


def overlap_suite(content):
    """The cases of mmdetection's own tests that are about overlaps."""
    kept = [c for c in content["cases"] if c["id"].startswith("bbox_overlaps/")]
    return {"cases": kept}


def rotated(content):
    """The exact numbers, without those of peers and of the cross-check."""
    left_out = ("box_format", "angle", "iou_shapely", "peer_iou_informational")
    pairs = content["elementwise"]
    kept = {k: v for k, v in pairs.items() if k not in left_out}
    return {"elementwise": kept, "pairwise": content["pairwise"][:2]}


def rotated_gradients(content):
    """The exact gradients."""
    return {k: v for k, v in content.items() if k not in ("meta", "angle", "cases")}


def rotated_formats(content):
    """Corners and angles of rotated boxes in degrees."""
    wanted = ("cxcywhr->xyxyxyxy", "xyxyxyxy->cxcywhr")
    return {"cases": [c for c in content["cases"] if c["id"].endswith(wanted)]}


def gaussians(content):
    """One case per distance, without gradients: those are checked on ours."""
    wanted = (
        "xy_wh_r_2_xy_sigma/pred",
        "gwd_loss/none/tau=0.0/normalize=False",
        "gwd_loss/log1p/tau=1.0/normalize=False",
        "kld_loss/none/tau=0.0",
        "kld_loss/log1p/tau=1.0/sqrt=True",
        "jd_loss/none/tau=0.0/sqrt=True",
        "v1_bcd_loss/none/tau=1.0",
        "kfiou_loss/none/pred_is_decode",
    )
    cases = [c for c in content["cases"] if c["id"].startswith(wanted)]
    weights = ("grad_weights_sigma", "grad_boxes")
    cases = [{k: v for k, v in c.items() if k not in weights} for c in cases]
    return {"inputs": content["inputs"], "cases": cases}


def boxes_3d(content):
    """The exact numbers of boxes in space."""
    kept = ("axis_aligned", "yaw", "yaw_grad")
    left_out = ("box_format", "note", "iou_shapely")
    return {
        key: {k: v for k, v in content[key].items() if k not in left_out}
        for key in kept
    }


def every(step):
    """Every so many rows of an archive of arrays."""

    def select(content):
        return {key: content[key][::step].tolist() for key in content.files}

    return select


def suite(content):
    """The suite without its masks, whose image is not part of the numbers."""
    kept = [c for c in content["cases"] if "masks" not in c["id"]]
    return {"cases": kept}


def suppressed(content):
    """All cases; of the groups of `nms_match` the boxes that are kept, the first."""
    for case in content["cases"]:
        if "groups" in case:
            case["keep"] = [group[0] for group in case.pop("groups")]
    return {"cases": content["cases"]}


def matrix_nms(content):
    """Masks of 0 and 1 as numbers."""
    for case in content["cases"]:
        rows = case.pop("masks_rows")
        case["masks"] = [[[*map(int, row)] for row in mask] for mask in rows]
    return {"cases": content["cases"]}


def assigners(content):
    """Assigners but those of `DynamicSoftLabel`, and the inputs without their names."""
    kept = [c for c in content["cases"] if not c["id"].startswith("DynamicSoft")]
    return {"inputs": content["inputs"], "cases": kept}


def task_aligned(content):
    """Who got which target and the soft scores; boxes follow from the former."""
    left_out = ("target_bboxes_fg", "target_labels")
    cases = [
        {k: v for k, v in c.items() if k not in left_out} for c in content["cases"]
    ]
    return {"inputs": content["inputs"], "cases": cases}


SOURCES = {
    "exact_axis_aligned": everything,
    "torchvision_pairwise": everything,
    "torchvision_losses": everything,
    "torchvision_nms": everything,
    "nms_extra": suppressed,
    "mmdet_matrix_nms": matrix_nms,
    "mmdet_assigners": assigners,
    "ultralytics_tal": task_aligned,
    "torchvision_misc": axis_aligned_misc,
    "mmdet_overlaps": everything,
    "mmdet_losses": everything,
    "iou_variants": variants,
    "ultralytics_iou": ultralytics,
    "suites/mmdet": overlap_suite,
    "mmdet_coders": everything,
    "detectron2_match": everything,
    "suites/torchvision": suite,
    "reported_cases": reported,
    "mask_losses": mask_losses,
    "lovasz": lovasz,
    "coco_iou": coco_masks,
    "rotated_iou": rotated,
    "rotated_iou_grad": rotated_gradients,
    "rotated_formats": rotated_formats,
    "mmrotate_gaussian": gaussians,
    "iou3d": boxes_3d,
    "real_rotated_iou": every(3),
    "real_box3d_iou": every(9),
}
# Files of which a second part is packed under a name of its own.
PARTS = {"rotated_formats": "torchvision_misc"}


def source(folder, name):
    """The content of a JSON file or of a NumPy archive."""
    path = folder / f"{PARTS.get(name, name)}.json"
    if path.exists():
        return json.loads(path.read_text())
    return np.load(path.with_suffix(".npz"))


def main(folder):
    """Writes one compressed file per source."""
    for name, select in SOURCES.items():
        content = source(folder, name)
        text = json.dumps(numbers(select(content)), separators=(",", ":"))
        packed = gzip.compress(text.encode(), mtime=0)
        target = GOLDEN / f"{name.replace('/', '_')}.json.gz"
        target.write_bytes(packed)
        print(f"{target.name}: {len(packed):,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
