"""Reading images and their annotations, with an error that names the image."""

import torch
from detectron2.data import DatasetMapper
from PIL import Image

from ..errors import UserError
from .sample_weights import GIVEN_WEIGHTS, WEIGHTS_ARE, is_sample_weight
from .training_set import ANNOTATION_NUMBER

__all__ = ["NamingDatasetMapper"]


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper. Its error says which image can't be used.

    In training, the ``instances`` of an image can have more fields, of its N objects:

    - ``gt_sample_weight``, ``gt_label_weight``, ``gt_box_weight``, ``gt_mask_weight``, (N,)
      float32, where an annotation of the image has a weight of that name: 1 for those whose
      annotation has none;
    - ``gt_annotation``, (N,) long, where :func:`~swn_d2.data.number_annotations` has numbered the
      annotations: the number of each one's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._cuts_masks = self.recompute_boxes

    def __call__(self, dataset_dict):
        annotations = dataset_dict.get("annotations", [])
        # Of cut masks Detectron2 makes boxes, but an image without objects has no masks.
        self.recompute_boxes = self._cuts_masks and not all(a.get("iscrowd") for a in annotations)
        keys = [key for key in GIVEN_WEIGHTS if any(key in a for a in annotations)]
        has_numbers = any(ANNOTATION_NUMBER in a for a in annotations)
        if not self.is_train or not (keys or has_numbers):
            return self._map(dataset_dict)
        weights = {key: [a.get(key, 1.0) for a in annotations] for key in keys}
        for name, values in weights.items():
            for weight in values:
                if not is_sample_weight(weight):
                    raise UserError(
                        f"an annotation of image {_name(dataset_dict)} has the {name} {weight!r}, "
                        f"but it must be {WEIGHTS_ARE}. Correct it, or remove the key."
                    )
        # Crowd regions, and what a crop cuts off, become no instances. Each annotation's index in
        # place of its class tells which ones are left.
        indexed = [{**a, "category_id": index} for index, a in enumerate(annotations)]
        result = self._map({**dataset_dict, "annotations": indexed})
        instances = result["instances"]
        left = instances.gt_classes
        instances.gt_classes = torch.tensor([int(a["category_id"]) for a in annotations])[left]
        for key in keys:
            instances.set(f"gt_{key}", torch.tensor(weights[key], dtype=torch.float32)[left])
        if has_numbers:
            numbers = [annotation[ANNOTATION_NUMBER] for annotation in annotations]
            instances.gt_annotation = torch.tensor(numbers)[left]
        return result

    def _map(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        # Damaged (a PNG by a SyntaxError), or not of the size that was promised; or of more pixels
        # than Pillow opens.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"cannot use image {_name(dataset_dict)}: {error}. Repair it, or take it out of "
                "the data set, and go on with --resume."
            ) from error


def _name(dataset_dict: dict) -> str:
    return f"{dataset_dict['file_name']} (image id {dataset_dict.get('image_id')})"
