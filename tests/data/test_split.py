import hashlib
import json
import math

import pytest
from PIL import Image

from swn_d2.data.split import part_of, split_dataset, split_pictures
from swn_d2.errors import UserError
from tests.voc import voc_object, write_voc

NUMBER = 500


def coco(number=NUMBER):
    """COCO-format content: `number` pictures, of which some have no object and others have two."""
    return {
        "info": {"year": 2020},
        "images": [
            {"id": f"i{i}", "file_name": f"{i % 7}/{i:06}.jpg", "width": 64, "height": 48}
            for i in range(number)
        ],
        "annotations": [
            {"id": i, "image_id": f"i{i // 2 * 2}", "category_id": 1, "bbox": [1, 2, 3, 4]}
            for i in range(number)
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "all.json"
    file.write_text(json.dumps(coco()))
    return file


def split(source, share=0.67, names=("a.json", "b.json")):
    """The contents of the two parts, after the numbers of their pictures were compared."""
    files = [source.parent / name for name in names]
    numbers = split_dataset(source, *files, share=share)
    contents = [json.loads(file.read_text()) for file in files]
    assert numbers == tuple(len(content["images"]) for content in contents)
    return contents


def names(content):
    return [image["file_name"] for image in content["images"]]


def test_where_a_picture_is_follows_from_its_name():
    # These numbers may never change: experiments have been made with the parts.
    assert [part_of(f"{i:06}.jpg") for i in range(1, 5)] == [0.344, 0.416, 0.839, 0.042]
    digest = hashlib.sha256(b"000001.jpg").hexdigest()
    assert part_of("some/folder/000001.jpg") == int(str(int(digest, 16))[-6:-3]) / 1000


def test_the_parts_are_the_whole(source):
    whole, parts = coco(), split(source)
    for section in ("images", "annotations"):
        entries = [entry for part in parts for entry in part[section]]
        assert sorted(entries, key=str) == sorted(whole[section], key=str)
    for part, is_first in zip(parts, (True, False), strict=True):
        assert all((part_of(name) < 0.67) == is_first for name in names(part))
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} <= ids
        assert {**part, "images": 0, "annotations": 0} == {**whole, "images": 0, "annotations": 0}
        for section in ("images", "annotations"):  # in the order of the whole
            assert part[section] == [entry for entry in whole[section] if entry in part[section]]
    # Four standard deviations of a binomial share.
    assert abs(len(parts[0]["images"]) / NUMBER - 0.67) < 4 * (0.67 * 0.33 / NUMBER) ** 0.5


def test_a_larger_share_takes_the_same_and_more(source):
    smaller, _ = split(source, 0.3)
    larger, _ = split(source, 0.6, ("c.json", "d.json"))
    assert set(names(smaller)) < set(names(larger))


def test_what_is_there_is_kept(source):
    split(source)
    files = [source.parent / name for name in ("a.json", "b.json")]
    before = [(file.read_bytes(), file.stat().st_ino) for file in files]
    split(source)
    assert [(file.read_bytes(), file.stat().st_ino) for file in files] == before
    files[0].unlink()
    split(source)
    assert files[0].read_bytes() == before[0][0]
    with pytest.raises(UserError, match="a.json exists already; remove it, or give another name"):
        split(source, 0.5)
    assert [file.read_bytes() for file in files] == [content for content, _ in before]


def test_nothing_is_written_beside_a_file_that_exists(source):
    (source.parent / "b.json").write_text("precious")
    with pytest.raises(UserError, match="b.json exists already"):
        split(source)
    assert sorted(p.name for p in source.parent.iterdir()) == ["all.json", "b.json"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range(source, share):
    with pytest.raises(UserError, match=f"must be above 0 and below 1, not {share}"):
        split(source, share)


@pytest.mark.parametrize(
    "outputs, message",
    [
        (("all.json", "b.json"), "all.json is the input, too; give the output another name"),
        (("a.json", "x/../all.json"), "all.json is the input, too"),
        (("a.json", "a.json"), "a.json is named for two outputs"),
        (("a.json", "all.json/b.json"), "cannot write .*b.json: (.*all.json is not a|Not a dir)"),
    ],
)
def test_outputs_that_cannot_be(source, outputs, message):
    with pytest.raises(UserError, match=message):
        split(source, names=outputs)
    assert [p.name for p in source.parent.iterdir()] == ["all.json"]


@pytest.mark.parametrize(
    "share, part, remedy", [(0.001, "first", "larger"), (0.999, "second", "sm")]
)
def test_a_part_without_a_picture(tmp_path, share, part, remedy):
    source = tmp_path / "all.json"
    source.write_text(json.dumps(coco(10)))
    with pytest.raises(
        UserError, match=f"none of the 10 .* is in the {part} part; give a {remedy}"
    ):
        split(source, share)
    assert [p.name for p in tmp_path.iterdir()] == ["all.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "There is no annotation file .*all.json"),
        ("{", "not valid JSON"),
        ("{}", 'is not in COCO format: it has no "images", "categories", "annotations"'),
        (json.dumps({**coco(), "annotations": []}), "has no annotation to train on"),
    ],
)
def test_a_source_that_is_none(source, text, message):
    source.unlink()
    if text is not None:
        source.write_text(text)
    with pytest.raises(UserError, match=message):
        split(source)


@pytest.fixture
def pictures(tmp_path):
    """Pictures with annotations in both formats; one is cut off, one is missing."""
    ids = [f"p{i}" for i in range(12)]
    write_voc(tmp_path, {image_id: [voc_object()] for image_id in ids})
    images = tmp_path / "JPEGImages"
    Image.effect_noise((200, 160), 50).convert("RGB").save(images / "p3.jpg")
    (images / "p3.jpg").write_bytes((images / "p3.jpg").read_bytes()[:-500])
    (images / "p5.jpg").unlink()
    content = {
        "images": [
            {"id": 9 - i, "file_name": f"{image_id}.jpg", "width": 200, "height": 160}
            for i, image_id in enumerate(ids)
        ],
        "annotations": [
            {"id": i, "image_id": 9 - i, "category_id": 3, "bbox": [0, 0, 100, 100]}
            for i in range(12)
        ],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    return images


@pytest.mark.parametrize("annotations", ["all.json", "Annotations"])
def test_pictures_that_cannot_be_read_are_in_no_part(pictures, annotations):
    folder = pictures.parent
    files = [folder / "a.json", folder / "b.json"]
    faults = split_pictures(folder / annotations, pictures, *files, share=0.5)
    assert set(faults) == {"p3.jpg", "p5.jpg"}
    assert "truncated" in faults["p3.jpg"] and faults["p5.jpg"] == "No such file or directory"
    parts = [json.loads(file.read_text()) for file in files]
    for part, is_first in zip(parts, (True, False), strict=True):
        assert all((part_of(name) < 0.5) == is_first for name in names(part))
        assert [a["image_id"] for a in part["annotations"]] == [i["id"] for i in part["images"]]
        # What COCO's evaluation needs, of annotations without it, too.
        assert all(a["area"] == math.prod(a["bbox"][2:]) for a in part["annotations"])
        assert all(a["iscrowd"] == 0 for a in part["annotations"])
    whole = {f"p{i}.jpg" for i in range(12)} - set(faults)
    assert sorted(names(parts[0]) + names(parts[1])) == sorted(whole)


def test_the_wrong_folder_of_pictures(pictures):
    folder = pictures.parent
    with pytest.raises(UserError, match="None of the 12 .* can be read .*; the first is p0.jpg: N"):
        split_pictures(folder / "all.json", folder, folder / "a.json", folder / "b.json")
    assert not (folder / "a.json").exists()


def test_pictures_in_folders_that_are_called_alike(tmp_path):
    content = coco()
    names = [image["file_name"] for image in content["images"]]
    for i, image in enumerate(content["images"][1:]):
        image["file_name"] = f"scene_{i}/rgb.jpg"
    source, parts = tmp_path / "all.json", [tmp_path / "first.json", tmp_path / "second.json"]
    source.write_text(json.dumps(content))
    first, second = split_dataset(source, *parts, share=0.67)
    assert first + second == len(content["images"])
    # The others stay where they are.
    in_first = names[0] in [
        image["file_name"] for image in json.loads(parts[0].read_text())["images"]
    ]
    assert in_first == (part_of(names[0]) < 0.67)
    assert abs(first - 0.67 * (first + second)) < 4 * (0.67 * 0.33 * (first + second)) ** 0.5
