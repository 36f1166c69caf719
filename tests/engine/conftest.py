import pytest

from swn_d2.data import make_digit_scenes, register_coco


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A small DigitScenes on disk, registered as ``few_digits_train`` and ``few_digits_val``."""
    root = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(root, num_train=8, num_val=4, image_size=(96, 64))
    for split in ("train", "val"):
        register_coco(
            f"few_digits_{split}",
            str(root / "annotations" / f"instances_{split}.json"),
            str(root / split),
        )
    return root


@pytest.fixture
def training_opts(scenes, tmp_path):
    """Overrides for a run on it that lasts a few iterations."""
    return [
        *("DATASETS.TRAIN", ("few_digits_train",)),
        *("DATASETS.TEST", ("few_digits_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10),
        *("INPUT.MIN_SIZE_TRAIN", (64,)),
        *("INPUT.MIN_SIZE_TEST", 64),
        *("DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", 2),
        *("SOLVER.MAX_ITER", 6),
        *("SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.STEPS", (5,)),
        *("SOLVER.CHECKPOINT_PERIOD", 2),
        *("OUTPUT_DIR", str(tmp_path / "run")),
    ]
