"""What users of such toolkits ask for and this release does not have; whoever names it is told so, instead of "unknown"."""

from __future__ import annotations

from oneshot_nas.errors import UserError

LATER = {
    "int8": "int8 quantisation", "latency": "searching by measured latency", "mixed-precision": "a choice of bit widths",
    "detection": "training detection and segmentation networks",
}
DETECTION = ("ssd_", "yolo", "faster_rcnn", "mask_rcnn", "center_net", "fcn_", "psp_", "deeplab_")


def check_later(word: str, instead: str) -> None:
    """Raise UserError when `word` names something of `LATER`; `instead` is what there is."""
    if word.lower() in LATER:
        raise UserError(f"{LATER[word.lower()]} ({word}) is not there yet; {instead}")


def check_task(model: str) -> None:
    """Raise UserError for the name of a GluonCV model that does something else than classify."""
    if model.lower().startswith(DETECTION):
        raise UserError(f"{LATER['detection']} ({model}) is not there yet; give a classification network")
