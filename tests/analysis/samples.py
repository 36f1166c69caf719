"""Records of samples made by hand, and folders of runs with them."""

import io

import numpy as np
from PIL import Image

from swn_d2.analysis.run_folder import RunFolder
from swn_d2.recording import RECORDING, Crop, Record, append_records
from tests.tiny import tiny_config


def record(iteration, *, stage="", num_positives=None, negatives=(), crops=(), **positives):
    """A record with columns of positives. Weights that are not given are 1."""
    columns = {name: np.asarray(values, dtype=np.float32) for name, values in positives.items()}
    size = len(next(iter(columns.values()), ()))
    ones = np.ones(size, dtype=np.float32)
    columns = {"cls_weight": ones, "box_weight": ones, **columns}
    return Record(
        iteration=iteration,
        stage=stage,
        num_positives=size if num_positives is None else num_positives,
        num_negatives=len(negatives),
        positives=columns,
        negatives={"cls_weight": np.asarray(negatives, dtype=np.float32)} if negatives else {},
        crops=tuple(crops),
    )


def crop(reason, image, gt_class=0, **stats):
    """A crop of a grey picture. Statistics that are not given have a value in the middle."""
    stream = io.BytesIO()
    Image.new("RGB", (60, 40), "#808080").save(stream, "JPEG")
    stats = {"cls_loss": 1.0, "iou": 0.5, "score": 0.5, **stats}
    return Crop(
        reason=reason,
        image=image,
        gt_class=gt_class,
        box=(5, 5, 40, 30),
        gt_box=(8, 8, 45, 35),
        stats={"cls_weight": 1.0, "box_weight": 1.0, **stats},
        jpeg=stream.getvalue(),
    )


def random_records(iterations, *, stage="", weighted=("box",), num_samples=40, seed=0):
    """Records with random statistics, whose weights are around 1 for the tasks named."""
    generator = np.random.default_rng(seed)
    for iteration in iterations:
        columns = {
            name: generator.exponential(size=num_samples) for name in ("cls_loss", "box_loss")
        }
        columns |= {name: generator.uniform(0.3, 1, num_samples) for name in ("iou", "prob")}
        for task in weighted:
            columns[f"{task}_weight"] = generator.lognormal(size=num_samples)
        yield record(iteration, stage=stage, **columns)


def run_folder(folder, records, *opts, **kwargs):
    """A run whose folder has a config and, if there are any, these records."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(tiny_config(*opts, **kwargs).dump())
    if records:
        append_records(folder / RECORDING, records)
    return RunFolder(folder)
