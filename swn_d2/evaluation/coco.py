"""What pycocotools' COCOeval, by which AP is measured, makes of the files of an evaluation."""

import contextlib
import io
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import UserError
from ..files import read_json
from .pictures import read_results

__all__ = ["IOU_THRESHOLD", "CocoResults", "Pair"]

#: From which IoU on a detection can be of an object.
IOU_THRESHOLD = 0.5

#: An object and what it was detected as, both as in COCO's files. One of them is None where an
#: object was missed, or something was detected that is none.
Pair = tuple[dict[str, Any] | None, dict[str, Any] | None]


class CocoResults:
    """Detections of boxes, and what there is to detect.

    Attributes:
        class_names: category id of the files -> name, with the id where several have it.
    """

    def __init__(self, results_file: str | Path, truth_file: str | Path):
        """
        Args:
            results_file: ``coco_instances_results.json``, which an evaluation leaves in its folder.
            truth_file: the annotations in COCO's format that it compared them with.

        Raises:
            UserError: a file can't be read, there are no annotations, or the results are those of
                other data.
        """
        self._results = read_results(results_file)
        try:
            self._truth = _numbered(read_json(truth_file))
            names = {c["id"]: c["name"] for c in self._truth.dataset["categories"]}
            number = Counter(names.values())
            self.class_names = {
                id_: name if number[name] == 1 else f"{name} ({id_})" for id_, name in names.items()
            }
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{truth_file} is not a file of annotations in COCO's format; was it changed after "
                "the evaluation?"
            ) from error
        if "annotations" not in self._truth.dataset:  # what a test set may be
            raise UserError(f"{truth_file} has no annotations to compare detections with.")
        for key, known, what in (
            ("category_id", self.class_names, "category"),
            ("image_id", self._truth.imgs, "image"),
        ):
            for result in self._results:
                if result[key] not in known:
                    raise UserError(
                        f"{results_file} has detections of {what} {result[key]!r}, which "
                        f"{truth_file} does not have; it is the result of other data. Evaluate the "
                        "model again."
                    )

    def precisions(self) -> dict[Any, np.ndarray]:
        """Precision over recall, of which AP50 is the mean.

        Returns:
            Category id -> (101,) the highest precision at the recalls 0, 0.01, ... 1 and more,
            0 where there is none. Categories without objects are left out.
        """
        evaluation = self._evaluation(score_threshold=0)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        of_class = evaluation.eval["precision"][0, :, :, 0, 0].T
        ids = evaluation.params.catIds
        return {k: row for k, row in zip(ids, of_class, strict=True) if row[0] >= 0}

    def pairs(self, score_threshold: float, *, by_class: bool) -> dict[Any, list[Pair]]:
        """Which detections are of which objects, by COCO's rule: detections choose in the order of
        their scores, each the object that it overlaps most of those that are left, if their IoU is
        ``IOU_THRESHOLD`` or more. Crowds (and VOC's difficult objects), and what is detected on
        them, are left out.

        Args:
            score_threshold: detections with a lower score are left out.
            by_class: whether a detection can only be of an object of its class, as in AP; else of
                any.

        Returns:
            Image id -> pairs, of images that have any.
        """
        evaluation = self._evaluation(score_threshold, by_class=by_class)
        objects, detections = evaluation.cocoGt.anns, evaluation.cocoDt.anns
        pairs = defaultdict(list)
        for matched in filter(None, evaluation.evalImgs):  # of an image, or a class in it
            of_image = pairs[matched["image_id"]]
            for id_, object_id, is_ignored in zip(
                matched["dtIds"], matched["dtMatches"][0], matched["dtIgnore"][0], strict=True
            ):
                if not is_ignored:  # COCOeval has 0 for none
                    of_image.append(
                        (objects[int(object_id)] if object_id else None, detections[id_])
                    )
            of_image += [
                (objects[id_], None)
                for id_, match, is_ignored in zip(
                    matched["gtIds"], matched["gtMatches"][0], matched["gtIgnore"], strict=True
                )
                if not match and not is_ignored
            ]
        return {image: of_image for image, of_image in pairs.items() if of_image}

    def _evaluation(self, score_threshold: float, *, by_class: bool = True) -> COCOeval:
        # COCO's own loading of results fails where there are none, and changes its argument.
        results = [
            {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
            for number, result in enumerate(self._results, start=1)
            if result["score"] >= score_threshold
        ]
        detections = _index({**self._truth.dataset, "annotations": results})
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._truth, detections, "bbox")
            parameters = evaluation.params
            parameters.iouThrs = np.array([IOU_THRESHOLD])
            parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], ["all"]
            parameters.maxDets = parameters.maxDets[-1:]
            parameters.useCats = int(by_class)
            evaluation.evaluate()
        return evaluation


def _numbered(content: dict[str, Any]) -> COCO:
    """The truth, its annotations numbered from 1: COCOeval keeps ids as floats, and has 0 for none,
    but they may be anything."""
    if "annotations" in content:
        numbered = [{**a, "id": i} for i, a in enumerate(content["annotations"], start=1)]
        content = {**content, "annotations": numbered}
    return _index(content)


def _index(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
