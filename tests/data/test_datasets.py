import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask

from swn_d2.data import (
    make_digit_scenes,
    register_coco,
    register_digit_scenes,
)
from swn_d2.errors import UserError


@pytest.fixture
def files(scenes):
    return str(scenes / "annotations" / "instances_val.json"), str(scenes / "val")


def test_digit_scenes_have_names_after_import():
    for split in ("train", "val"):
        assert f"digit_scenes_{split}" in DatasetCatalog
        metadata = MetadataCatalog.get(f"digit_scenes_{split}")
        assert metadata.json_file.endswith(f"digit_scenes/annotations/instances_{split}.json")
        assert metadata.image_root.endswith(f"digit_scenes/{split}")
    register_digit_scenes()  # once more does no harm


def test_digit_scenes_live_under_detectron2_datasets(monkeypatch, tmp_path):
    before = {s: MetadataCatalog.get(f"digit_scenes_{s}").json_file for s in ("train", "val")}
    try:
        for split in before:
            DatasetCatalog.remove(f"digit_scenes_{split}")
            MetadataCatalog.remove(f"digit_scenes_{split}")
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        register_digit_scenes()
        metadata = MetadataCatalog.get("digit_scenes_val")
        assert metadata.image_root == str(tmp_path / "digit_scenes" / "val")
    finally:
        for split in before:
            DatasetCatalog.remove(f"digit_scenes_{split}")
            MetadataCatalog.remove(f"digit_scenes_{split}")
        monkeypatch.undo()
        register_digit_scenes()
    assert {s: MetadataCatalog.get(f"digit_scenes_{s}").json_file for s in before} == before


def test_training_sets_that_know_what_is_noisy(digit_scenes_here):
    noise = {"box_noise_share": 0.5, "class_noise_share": 0.2}
    make_digit_scenes(digit_scenes_here, num_train=20, num_val=1, **noise)
    noisy, clean, oracle = (
        [a for record in DatasetCatalog.get(name) for a in record["annotations"]]
        for name in [f"digit_scenes_train{kind}" for kind in ("", "_clean", "_oracle")]
    )
    pairs = list(zip(noisy, clean, strict=True))
    jittered = [a["bbox"] != b["bbox"] for a, b in pairs]
    wrong = [a["category_id"] != b["category_id"] for a, b in pairs]
    assert 0.3 < sum(jittered) / len(pairs) < 0.7
    assert 0.1 < sum(wrong) / len(pairs) < 0.3
    for key in ("bbox", "category_id"):
        assert [a[key] for a in oracle] == [a[key] for a in noisy]
    weights = [0.0 if j or w else 1.0 for j, w in zip(jittered, wrong, strict=True)]
    assert [a.get("sample_weight", 1.0) for a in oracle] == weights
    assert not any("sample_weight" in a for a in [*noisy, *clean])
    assert all(a["category_id"] == a["clean_category_id"] - 1 for a in clean)
    for a in clean:  # they are the extents of the masks
        x, y, w, h = mask.toBbox(a["segmentation"])
        assert a["bbox"] == [x, y, w, h]


def test_a_name_that_is_taken(files, clean_catalog):
    with pytest.raises(UserError, match="coco_2017_train is already taken by .*train2017.json"):
        register_coco("coco_2017_train", *files)
    DatasetCatalog.register("bare", lambda: [])
    with pytest.raises(UserError, match="name bare is already taken. Choose another"):
        register_coco("bare", *files)


def test_a_file_or_folder_that_is_missing(files, clean_catalog):
    json_file, image_dir = files
    with pytest.raises(UserError, match="own: there is no annotation file nowhere.json"):
        register_coco("own", "nowhere.json", image_dir)
    with pytest.raises(UserError, match="own: there is no image folder nowhere"):
        register_coco("own", json_file, "nowhere")
    assert "own" not in DatasetCatalog
