"""What users of such toolkits ask for and this release does not have; whoever names it is told so, instead of "unknown"."""

from __future__ import annotations

from oneshot_nas.errors import UserError

LATER = {
    "latency": "searching by measured latency",
    **dict.fromkeys(("int8", "quantize", "quantise"), "int8 quantisation"),
    **dict.fromkeys(("mixed-precision", "bits"), "a choice of bit widths"),
    **dict.fromkeys(("detection", "detect"), "training detection and segmentation networks"),
    **dict.fromkeys(("kvstore", "machines", "hosts"), "training on several machines"),
}
DETECTION = ("ssd_", "yolo", "faster_rcnn", "mask_rcnn", "center_net", "fcn_", "psp_", "deeplab_", "custom_faster_rcnn",
             "custom_mask_rcnn", "doublehead_rcnn", "icnet_", "danet_", "fastscnn")


def later(word: str, instead: str) -> str | None:
    """The sentence for a `word` that names something of `LATER`, None for another one; `instead` is what there is."""
    return f"{LATER[word.lower()]} ({word}) is not there yet; {instead}" if word.lower() in LATER else None


def check_later(word: str, instead: str) -> None:
    """Raise UserError when `word` names something of `LATER`."""
    if (message := later(word, instead)) is not None:
        raise UserError(message)


def check_task(model: str) -> None:
    """Raise UserError for the name of a GluonCV model that does something else than classify."""
    if model.lower().endswith("_int8"):
        raise UserError(f"{LATER['int8']} ({model}) is not there yet; give the network without _int8")
    if model.lower().startswith(DETECTION):
        raise UserError(f"{LATER['detection']} ({model}) is not there yet; give a classification network")
