"""Box overlap for JAX: measures, losses, matrices, matching and suppression.

A measure is written once, as a formula on one pair of boxes, and everything else is
derived from it: the loss with its gradient, the matrix, the matching that never writes
the matrix, and suppression.

The contract of every function:

- Boxes are `xyxy` unless the name says otherwise: continuous coordinates in any unit, x
  to the right, y down, no "+1". An inverted box is empty.
- Calling a measure is aligned, `(*batch, 4) × (*batch, 4) → (*batch)`; `pairwise` is
  the matrix, `(*batch, n, 4) × (*batch, m, 4) → (*batch, n, m)`.
- Nothing is reduced. `where=` masks are exact: a masked row gives value 0 and gradient
  0 even when it holds NaN.
- No `eps`: a measure of a box with itself is its maximum at any scale, and every finite
  input has a finite value and gradient.
- Arithmetic happens in float32 or the inputs' wider type; measures and losses return
  the input's floating dtype, integers give float32.
- Pure functions of static shape, for `jit`, `vmap`, `grad` and sharded arrays. Errors
  are raised at trace time.
"""

from importlib.metadata import version as _version

from ._measure import Measure as Measure
from .anchors import anchor_grid as anchor_grid
from .anchors import decode as decode
from .anchors import decode_ltrb as decode_ltrb
from .anchors import encode as encode
from .anchors import encode_ltrb as encode_ltrb
from .assigners import match_atss as match_atss
from .assigners import match_simota as match_simota
from .assigners import match_task_aligned as match_task_aligned
from .boxes import area as area
from .boxes import check_boxes as check_boxes
from .boxes import clip as clip
from .boxes import convert as convert
from .boxes import is_valid as is_valid
from .coders import decode_dfl as decode_dfl
from .coders import decode_rotated as decode_rotated
from .coders import encode_dfl as encode_dfl
from .coders import encode_rotated as encode_rotated
from .combinators import alpha_iou as alpha_iou
from .combinators import focaler as focaler
from .combinators import inner_iou as inner_iou
from .distances import Distance as Distance
from .distances import bhattacharyya_distance as bhattacharyya_distance
from .distances import gwd_distance as gwd_distance
from .distances import jeffreys_distance as jeffreys_distance
from .distances import kld_distance as kld_distance
from .distances import similarity as similarity
from .gaussian import kfiou as kfiou
from .gaussian import kfiou_raw as kfiou_raw
from .gaussian import mgiou as mgiou
from .gaussian import nwd as nwd
from .gaussian import probiou as probiou
from .gaussian import rotated_nwd as rotated_nwd
from .gaussian import to_gaussian as to_gaussian
from .losses import box_loss as box_loss
from .losses import ciou_loss as ciou_loss
from .losses import diou_loss as diou_loss
from .losses import focal_eiou_loss as focal_eiou_loss
from .losses import giou_loss as giou_loss
from .losses import iou_loss as iou_loss
from .losses import log_iou_loss as log_iou_loss
from .losses import squared_iou_loss as squared_iou_loss
from .losses import wiou_loss as wiou_loss
from .mask_overlaps import mask_iou as mask_iou
from .mask_overlaps import masks_to_boxes as masks_to_boxes
from .mask_overlaps import pairwise_mask_iou as pairwise_mask_iou
from .masks import dice_loss as dice_loss
from .masks import jaccard_loss as jaccard_loss
from .masks import lovasz_hinge as lovasz_hinge
from .masks import lovasz_softmax as lovasz_softmax
from .masks import tversky_loss as tversky_loss
from .matching import Assignment as Assignment
from .matching import Sample as Sample
from .matching import match_anchors as match_anchors
from .matching import sample as sample
from .matching import take_targets as take_targets
from .matrix import BestMatch as BestMatch
from .matrix import best_match as best_match
from .matrix import pairwise as pairwise
from .measures import ciou as ciou
from .measures import diou as diou
from .measures import eiou as eiou
from .measures import gated_ciou as gated_ciou
from .measures import giou as giou
from .measures import iof as iof
from .measures import iou as iou
from .measures import measure as measure
from .metrics import Evaluation as Evaluation
from .metrics import average_precision as average_precision
from .one_to_one import box_l1_cost as box_l1_cost
from .one_to_one import focal_cost as focal_cost
from .one_to_one import match_one_to_one as match_one_to_one
from .one_to_one import measure_cost as measure_cost
from .rescoring import GaussianDecay as GaussianDecay
from .rescoring import LinearDecay as LinearDecay
from .rescoring import Rescored as Rescored
from .rescoring import matrix_nms as matrix_nms
from .rescoring import soft_nms as soft_nms
from .rotated import convert_angle as convert_angle
from .rotated import corners as corners
from .rotated import from_corners as from_corners
from .rotated import rotated_diou as rotated_diou
from .rotated import rotated_giou as rotated_giou
from .rotated import rotated_iof as rotated_iof
from .rotated import rotated_iou as rotated_iou
from .rotated import to_xyxy as to_xyxy
from .suppression import Kept as Kept
from .suppression import Overlaps as Overlaps
from .suppression import nms as nms
from .variants import bounded_iou as bounded_iou
from .variants import extended_iou as extended_iou
from .variants import mpdiou as mpdiou
from .variants import piou as piou
from .variants import piou_v2 as piou_v2
from .variants import shape_iou as shape_iou
from .variants import siou as siou
from .variants import smooth_iou as smooth_iou
from .variants import wiou as wiou
from .volumes import bev_iou as bev_iou
from .volumes import diou_3d as diou_3d
from .volumes import giou_3d as giou_3d
from .volumes import interval_iou as interval_iou
from .volumes import iou_3d as iou_3d
from .volumes import yaw_giou_3d as yaw_giou_3d
from .volumes import yaw_iou_3d as yaw_iou_3d

try:
    __version__ = _version("jaxiou")
except ModuleNotFoundError:
    __version__ = "0"
