import pytest
from PIL import Image

from swn_d2.data.voc_folder import read_voc_folder
from swn_d2.errors import UserError
from tests.voc import voc_object, write_voc


@pytest.fixture
def folders(tmp_path):
    """Annotations and pictures, as labelling tools leave them: no split, folders of any name."""
    objects = {
        "b": [voc_object("dog", (11, 21, 110, 120)), voc_object("cat", (1, 0, 2.5, 4), 1)],
        "a": [voc_object("cat", (200, 160, 200, 160), None)],
        "c": [],
    }
    write_voc(tmp_path, objects)
    return (
        (tmp_path / "Annotations").rename(tmp_path / "xml"),
        (tmp_path / "JPEGImages").rename(tmp_path / "photos"),
    )


def test_it_becomes_coco_content(folders):
    size = {"width": 200, "height": 160}
    assert read_voc_folder(*folders) == {
        "images": [{"id": i, "file_name": f"{n}.jpg", **size} for i, n in enumerate("abc", 1)],
        "annotations": [
            # The last pixel of a box is in it, so one of a single pixel has a size; those of tools
            # that count from 0 do not begin outside.
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [199, 159, 1, 1], "area": 1}
            | {"iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [10, 20, 100, 100], "area": 10000}
            | {"iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 2.5, 4], "area": 10}
            | {"iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def names(folders):
    return [image["file_name"] for image in read_voc_folder(*folders)["images"]]


def test_pictures_of_other_formats_in_the_same_folder(folders):
    annotations, images = folders
    Image.open(images / "a.jpg").save(annotations / "a.PNG", "png")
    (annotations / "a.txt").touch()
    (images / "b.jpg").rename(annotations / "b.jpeg")
    assert names((annotations, annotations)) == ["a.PNG", "b.jpeg", "c.jpg"]  # it has no c


def test_the_file_says_which_picture_where_the_name_does_not(folders):
    annotations, images = folders
    (annotations / "a.xml").rename(annotations / "renamed.xml")
    Image.open(images / "b.jpg").save(images / "b.png")
    text = (annotations / "c.xml").read_text()
    (annotations / "c.xml").write_text(text.replace("c.jpg", "C:\\photos\\d.jpg"))
    (images / "c.jpg").rename(images / "d.jpg")
    assert names(folders) == ["b.jpg", "d.jpg", "a.jpg"]
    (annotations / "c.xml").write_text(text.replace("<filename>c.jpg</filename>", ""))
    text = (annotations / "b.xml").read_text()
    (annotations / "b.xml").write_text(text.replace("b.jpg", "b.png"))
    assert names(folders) == ["b.png", "c.jpg", "a.jpg"]


def test_folders_that_are_none(folders, tmp_path):
    annotations, images = folders
    with pytest.raises(UserError, match="no XML file in the folder .*photos; give the folder"):
        read_voc_folder(images, images)
    with pytest.raises(UserError, match="There is no image folder .*nowhere"):
        read_voc_folder(annotations, tmp_path / "nowhere")
    (annotations / "c.xml").rename(images / "c.xml")
    with pytest.raises(UserError, match="None of the 1 XML files in .*photos has an object"):
        read_voc_folder(images, images)


def test_a_file_with_a_mistake_is_named(folders):
    annotations, _ = folders
    file = annotations / "b.xml"
    file.write_text(file.read_text().replace("<xmin>11</xmin>", "<xmin>111</xmin>"))
    with pytest.raises(UserError, match="b.xml: object number 1 has a box whose xmax"):
        read_voc_folder(*folders)
