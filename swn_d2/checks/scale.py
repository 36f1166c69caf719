"""How large the checks are: on a GPU as in a training, on a CPU as small as shows the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ON_CPU", "ON_GPU", "Scale"]


@dataclass(frozen=True)
class Scale:
    """
    Attributes:
        device: "cuda" or "cpu".
        picture_size: height and width in pixels.
        few_pictures, many_pictures: in a batch.
        pairs: of steps that are timed, at most and, with many pictures, at most.
        iterations: of a training that should stay finite.
        half_precisions: the names of the types for mixed precision.
        num_samples: that the weighting step is timed with.
        weighted: what it weights -> KEY VALUE, in each of its variants.
        repetitions: of what is quick to time.
        num_boxes: that detections are suppressed among.
        num_classes: of these, and of the samples of the weighting step.
        overrides: KEY VALUE of every detector.
        compiler: torch.compile's backend.
    """

    device: str
    picture_size: tuple[int, int]
    few_pictures: int
    many_pictures: int
    pairs: int
    pairs_of_many: int
    iterations: int
    half_precisions: tuple[str, ...]
    num_samples: tuple[int, ...]
    weighted: Mapping[str, Sequence[Any]]
    repetitions: int
    num_boxes: int
    num_classes: int
    compiler: str
    overrides: list[Any] = field(default_factory=list)

    def goal(self, value: float) -> float | None:
        """A goal for time or memory, which something tiny on a CPU says nothing of."""
        return value if self.device == "cuda" else None


ON_GPU = Scale(
    device="cuda",
    picture_size=(800, 1333),
    few_pictures=2,
    many_pictures=16,
    pairs=25,
    pairs_of_many=5,
    iterations=30,
    half_precisions=("float16", "bfloat16"),
    num_samples=(512, 8192, 200_000, 400_000),
    weighted={
        "boxes": ["MODEL.SWN.TASKS", ["box"]],
        "boxes and classes by object": [],
        "boxes and the classification of every sample": ["MODEL.SWN.CLS_AVERAGING", "none"],
    },
    repetitions=20,
    num_boxes=1000,
    num_classes=80,
    compiler="inductor",
)

ON_CPU = Scale(
    device="cpu",
    picture_size=(64, 96),
    few_pictures=2,
    many_pictures=3,
    pairs=2,
    pairs_of_many=1,
    iterations=4,
    half_precisions=("bfloat16",),
    num_samples=(512, 2048),
    weighted={
        "boxes and classes by object": [],
        "boxes and the classification of every sample": ["MODEL.SWN.CLS_AVERAGING", "none"],
    },
    repetitions=2,
    num_boxes=50,
    num_classes=3,
    compiler="eager",  # which traces, and runs what it traced: to compile takes minutes
    overrides=[
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
        *("MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100),
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
        *("MODEL.RPN.PRE_NMS_TOPK_TEST", 100),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 50),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 32),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.RETINANET.NUM_CONVS", 1),
    ],
)
