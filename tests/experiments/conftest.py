import pytest
import yaml

from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    """A tiny detector, trained and tested on the data sets mine_train and mine_val."""
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("mine_train",)),
        *("DATASETS.TEST", ("mine_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10),
        *("INPUT.MIN_SIZE_TRAIN", (64,)),
        *("INPUT.MIN_SIZE_TEST", 64),
        *("DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", 2),
        *("SOLVER.MAX_ITER", 4),
        *("SOLVER.STEPS", (3,)),
        *("SOLVER.CHECKPOINT_PERIOD", 2),
    )
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(cfg.dump())
    return path


@pytest.fixture
def write_matrix(tmp_path, config_file):
    """Writes a matrix of two rows and two seeds, with changes: a key set to None is left out."""

    def write(**changes):
        content = {
            "output": str(tmp_path / "output"),
            "seeds": [1, 2],
            "baseline": "plain",
            "rows": {
                "plain": {"config": str(config_file)},
                "lambda 0.1": {
                    "config": str(config_file),
                    "overrides": {"MODEL.SWN.LAMBDA_BOX": 0.1},
                },
            },
            **changes,
        }
        content = {key: value for key, value in content.items() if value is not None}
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write
