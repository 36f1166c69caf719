"""Stands in for Detectron2's compiled module in the pure-Python build.

Faster R-CNN, Mask R-CNN, Cascade R-CNN and RetinaNet never call it. What does need it gets one
sentence that says so. ``detectron2.layers.nms`` looks the operator ``detectron2::nms_rotated`` up
when it is imported, so that one has to exist even though it cannot run.
"""

import torch

# The compiled COCO evaluation, which has an equivalent in plain Python.
_COCO_EVALUATION = ("InstanceAnnotation", "COCOevalEvaluateImages", "COCOevalAccumulate")


def _not_available(name: str) -> str:
    instead = "COCOEvaluator(..., use_fast_impl=False) or " if name in _COCO_EVALUATION else ""
    return (
        f"detectron2._C.{name} is compiled code, which this pure-Python build of Detectron2 does "
        f"not have; use {instead}a Detectron2 built from source."
    )


def _nms_rotated(dets, scores, iou_threshold):
    raise NotImplementedError(_not_available("nms_rotated"))


# The operator lives only as long as this object does.
_library = torch.library.Library("detectron2", "DEF")
_library.define("nms_rotated(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.impl("nms_rotated", _nms_rotated, "CompositeExplicitAutograd")


# `detectron2.utils.collect_env` asks these three at the start of every training.
def get_compiler_version() -> str:
    return "none (pure-Python build)"


def get_cuda_version() -> str:
    return "none (pure-Python build)"


def has_cuda() -> bool:
    return False


def __getattr__(name: str):
    # An AttributeError, so that hasattr() and getattr() with a default keep their meaning.
    raise AttributeError(_not_available(name))
