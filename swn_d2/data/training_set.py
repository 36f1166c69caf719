"""The training set as a whole: what the loader loads, and numbers to know its annotations by."""

from detectron2.data import get_detection_dataset_dicts

from ..errors import UserError
from ..pickled_arrays import read_pickled_arrays
from .sample_weights import GIVEN_WEIGHTS, keep_sample_weights, without_weights

__all__ = ["ANNOTATION_NUMBER", "load_training_set", "number_annotations"]

#: The key of an annotation that has its number among all annotations of the training set.
ANNOTATION_NUMBER = "annotation_number"


def load_training_set(cfg) -> list[dict]:
    """The dataset dicts that Detectron2's training loader would load for ``cfg``, with the
    weights of annotations that have some.

    Raises:
        UserError: a file of proposals can't be read, or holds more than arrays; or the detector
            does not look at the weights that annotations have.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        for file in cfg.DATASETS.PROPOSAL_FILES_TRAIN:
            read_pickled_arrays(file)  # Detectron2 would run the code in it
    keep_sample_weights(cfg.DATASETS.TRAIN)
    # As Detectron2's loader calls it, which has no function for this.
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        if cfg.MODEL.KEYPOINT_ON
        else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    # The weights in a file are checked before; a data set may make its own as it is loaded.
    if stock := without_weights(cfg):
        annotations = [a for record in records for a in record.get("annotations", [])]
        for key in GIVEN_WEIGHTS:
            if number := sum(key in a for a in annotations):
                raise UserError(
                    f"{', '.join(cfg.DATASETS.TRAIN)}: {number} annotations are loaded with a "
                    f"{key}, which has no effect on {stock}"
                )
    return records


def number_annotations(dataset_dicts: list[dict]) -> int:
    """Number all annotations from 0, those of crowd regions too, under the key
    :data:`ANNOTATION_NUMBER`, in place.

    An annotation has the same number in every process, and in a run that is resumed, as long as
    the data set is loaded in the same order.

    Returns:
        How many annotations there are.
    """
    count = 0
    for record in dataset_dicts:
        for annotation in record.get("annotations", []):
            annotation[ANNOTATION_NUMBER] = count
            count += 1
    return count
