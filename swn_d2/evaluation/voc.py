"""Pascal VOC with two kinds of AP: COCO's and VOC's, both with difficult objects ignored."""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, PascalVOCDetectionEvaluator
from detectron2.utils import comm

__all__ = ["COCOStyleVOCEvaluator", "VOCStyleEvaluator", "build_voc_evaluator"]


def build_voc_evaluator(dataset_name: str, output_dir: str) -> DatasetEvaluators:
    """The evaluator of a data set made by :func:`swn_d2.data.register_voc`.

    Its results, in percent, are those of :class:`COCOStyleVOCEvaluator` and
    :class:`VOCStyleEvaluator`. All processes must build it, and evaluate with it, together.

    Args:
        dataset_name: the name of the data set.
        output_dir: the folder for the detections and for the ground truth in COCO's format.
    """
    return DatasetEvaluators(
        [COCOStyleVOCEvaluator(dataset_name, output_dir), VOCStyleEvaluator(dataset_name)]
    )


class COCOStyleVOCEvaluator(COCOEvaluator):
    """COCO's box metrics as ``"bbox"``: AP is the mean over IoU 0.50:0.95 and 101 recalls."""

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            dataset_name: a data set with ``iscrowd`` in its annotations.
            output_dir: see :func:`build_voc_evaluator`.
        """
        # COCOEvaluator would take any file that it finds there, of another run's data too.
        json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
        if comm.get_local_rank() == 0:
            convert_to_coco_json(dataset_name, json_file, allow_cached=False)
        comm.synchronize()
        metadata = MetadataCatalog.get(dataset_name)
        metadata.json_file = json_file
        try:
            # VOC has no masks to compare with, even if the detector has some.
            super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir)
        finally:
            # It can be set once only, and the next evaluation may have another folder.
            del metadata.json_file


class VOCStyleEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's VOC metrics, under the name ``"voc"``: AP (mean over 0.50:0.95), AP50, AP75."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        results = super().evaluate()  # None in all processes but the first
        return results and {"voc": {name: float(ap) for name, ap in results["bbox"].items()}}
