"""Pictures of detections beside the ground truth."""

import json
from collections import defaultdict
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

from ..errors import UserError

__all__ = ["draw_detections"]

# Two colours that the colour-blind tell apart, light enough for a dark label.
_TRUTH, _DETECTION = "#ffd54a", "#5fd3f3"


def draw_detections(
    results_file: str,
    dataset_name: str,
    output_file: str,
    *,
    num_images: int = 8,
    score_threshold: float = 0.5,
) -> None:
    """Draw images of a data set in pairs: their ground truth, and what was detected.

    The images are spread evenly over the data set, not chosen.

    Args:
        results_file: ``coco_instances_results.json``, which an evaluation leaves in ``inference/``
            of its output directory.
        dataset_name: the COCO-format data set that was evaluated.
        output_file: where to write the picture; the ending chooses the format.
        num_images: how many images.
        score_threshold: detections with a lower score are left out.

    Raises:
        UserError: the results can't be read.
    """
    # Costs a second; a training that draws nothing need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    detections = _detections_by_image(results_file)
    metadata = MetadataCatalog.get(dataset_name)
    images = DatasetCatalog.get(dataset_name)
    num_images = min(num_images, len(images))
    images = [images[i * len(images) // num_images] for i in range(num_images)]
    class_of_category = metadata.thing_dataset_id_to_contiguous_id

    columns = 4
    rows = -(-2 * len(images) // columns)
    aspect = images[0]["height"] / images[0]["width"]
    figure = Figure(figsize=(12, 12 / columns * aspect * rows + 0.5), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for i, image in enumerate(images):
        pixels = read_image(image["file_name"], format="RGB")
        truth, found = axes[2 * i], axes[2 * i + 1]
        truth.imshow(pixels)
        found.imshow(pixels)
        for annotation in image["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            _draw(truth, box, metadata.thing_classes[annotation["category_id"]], _TRUTH)
        for detection in detections[image["image_id"]]:
            if detection["score"] >= score_threshold:
                name = metadata.thing_classes[class_of_category[detection["category_id"]]]
                label = f"{name}  {detection['score']:.0%}"
                _draw(found, detection["bbox"], label, _DETECTION)
    for column in range(columns):
        title = f"detections with a score of {score_threshold:.0%} or more"
        axes[column].set_title(title if column % 2 else "ground truth", fontsize=10)
    figure.tight_layout(pad=0.6)
    figure.savefig(output_file)


def _detections_by_image(results_file: str) -> dict[int, list[dict]]:
    try:
        results = json.loads(Path(results_file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the detections in {results_file} ({error}); evaluate the model first, "
            "with train_net.py --eval-only."
        ) from error
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return by_image


def _draw(axis, box, label: str, color: str) -> None:
    """Draw ``box``, XYWH in pixels, with ``label`` above it, or inside where it is at the top."""
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.5))
    is_at_top = y < 12
    axis.text(
        x,
        y + 1 if is_at_top else y - 2,
        label,
        fontsize=7,
        va="top" if is_at_top else "bottom",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0},
        clip_on=True,
    )
