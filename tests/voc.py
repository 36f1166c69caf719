"""Small folders in Pascal VOC's layout: real XML, real pictures."""

from pathlib import Path

from PIL import Image

CLASSES = ("dog", "cat")


def voc_object(name="dog", box=(1, 1, 100, 100), difficult: int | None = 0) -> str:
    """An <object>; ``box`` as VOC has it: 1-based, its last pixels included."""
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        + ("" if difficult is None else f"<difficult>{difficult}</difficult>")
        + f"<bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in corners)}</bndbox>"
        # A part of an object has a box of its own, which nothing here should take for an object's.
        + "<part><name>head</name><bndbox><xmin>7.5</xmin></bndbox></part></object>"
    )


def write_voc(root: Path, images: dict[str, list[str]], split="train", size=(200, 160)) -> str:
    """Write images (id -> its objects) as the folder ``root``, and return its path."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    width, height = size
    for image_id, objects in images.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><filename>{image_id}.jpg</filename>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            f"{''.join(objects)}</annotation>"
        )
        Image.new("RGB", size, (90, 120, 60)).save(root / "JPEGImages" / f"{image_id}.jpg")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    return str(root)
