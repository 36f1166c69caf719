import pytest
from detectron2.config import get_cfg

from swn_d2.data import make_digit_scenes, register_coco


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A DigitScenes folder with many boxes, 40 % of the training boxes jittered."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    return make_digit_scenes(root, num_train=200, num_val=20, box_noise_share=0.4, seed=3)


@pytest.fixture
def registered_scenes(scenes, clean_catalog):
    """The names of the two splits of ``scenes``."""
    for split in ("train", "val"):
        annotations = scenes / "annotations" / f"instances_{split}.json"
        register_coco(f"scenes_{split}", str(annotations), str(scenes / split))
    return "scenes_train", "scenes_val"


@pytest.fixture
def cfg():
    """Faster R-CNN for the ten digits, without data sets."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.TEST = ()
    return cfg
