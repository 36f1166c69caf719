"""DigitScenes: real handwritten digits on real photographs, with boxes and masks, as COCO files.

The digits are the 1797 scans of ``sklearn.datasets.load_digits``, the photographs the two of
``sklearn.datasets.load_sample_images``. Both come inside scikit-learn, so nothing is downloaded.
"""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from swn_d2.errors import UserError

from .noise import jitter

__all__ = ["make_digit_scenes"]

DESCRIPTION = "DigitScenes"
VERSION = 1  # part of "info": raise it whenever the same request would give other files
SPLITS = ("train", "val")
DIGITS_PER_IMAGE = (3, 10)
DIGIT_SIZE = (0.125, 0.4)  # of the image's shorter side: 20 to 64 pixels by default
MAX_BOX_IOU = 0.2
MIN_CONTRAST = 0.4  # luminance difference between ink and the background behind it
TRAIN_SHARE = 0.75  # of the scans in each class
PHOTO_WIDTH = 640
SPLIT_COLUMN = 300  # training backgrounds lie left of it, validation backgrounds right
LUMA = np.array([0.299, 0.587, 0.114])

CELL = 8  # pixels per scan pixel in the enlarged scans
PADDING = 2  # empty scan pixels around a scan
INK_LEVEL = 0.42  # grey level (of 1) at which a scan's ink ends: the outline of the mask


class _Material(NamedTuple):
    """What the scenes of one split are made of."""

    scans: list[Image.Image]  # enlarged grey scans, ink bright
    labels: np.ndarray  # (scans,) digits 0 to 9
    photographs: list[Image.Image]


class _Digit(NamedTuple):
    label: int
    mask: np.ndarray  # (H, W) bool, of the whole image
    box: tuple[int, int, int, int]  # x0, y0, x1, y1: the extents of the mask


def make_digit_scenes(
    root: str | os.PathLike,
    *,
    num_train: int = 2000,
    num_val: int = 300,
    image_size: tuple[int, int] = (192, 160),
    box_noise_share: float = 0.0,
    box_noise_amount: float = 0.2,
    class_noise_share: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write the data set into the folder ``root`` and return that folder.

    The same request gives the same files, byte for byte, and image *i* does not depend on how many
    images there are. A folder that already holds the same request is kept as it is. The folder
    appears only when it is complete, so an interrupted run leaves nothing that could be mistaken
    for a data set.

    Args:
        root: gets ``annotations/instances_{train,val}.json`` and ``{train,val}/000001.jpg``, ...
        num_train, num_val: images in each split.
        image_size: (width, height) in pixels, at least 64 each.
        box_noise_share: probability that a *training* box is jittered. Its mask and its
            ``clean_bbox`` stay exact.
        box_noise_amount: each side of a jittered box moves by a uniform share of the box's width
            (or height) in ±``box_noise_amount``, and is clipped to the image.
        class_noise_share: probability that a *training* object is annotated as another digit,
            each of the nine others being as likely. Its ``clean_category_id`` stays true.
        seed: non-negative integer.

    Raises:
        UserError: an argument is out of range, ``root`` holds something else, or scikit-learn is
            not installed.
    """
    root = Path(root)
    request = {
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "box_noise_share": float(box_noise_share),  # 1 and 1.0 are the same request
        "box_noise_amount": float(box_noise_amount),
        "class_noise_share": float(class_noise_share),
        "seed": seed,
    }
    _check_request(request)
    if _is_there(root, request):
        return root
    materials = _load_materials()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{root.name}-unfinished-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=root.parent) as folder:
            unfinished = Path(folder, root.name)
            for split in SPLITS:
                _write_split(unfinished, split, materials[split], request)
            try:
                unfinished.rename(root)
            except OSError:
                # Another process may have finished the same request in the meantime.
                if not _is_there(root, request):
                    raise
    except OSError as error:
        raise UserError(
            f"Cannot write DigitScenes to {root}: {error}. Free some space or choose "
            "another folder."
        ) from error
    return root


def _check_request(request: dict) -> None:
    for key in ("num_train", "num_val"):
        if request[key] < 1:
            raise UserError(f"DigitScenes needs {key} of at least 1, not {request[key]}.")
    if min(request["image_size"]) < 64:
        width, height = request["image_size"]
        raise UserError(f"DigitScenes images must be at least 64x64 pixels, not {width}x{height}.")
    for key in ("box_noise_share", "class_noise_share"):
        if not 0 <= request[key] <= 1:
            raise UserError(f"{key} must be in [0, 1], not {request[key]}.")
    if not 0 <= request["box_noise_amount"] < 0.5:  # at 0.5 two opposite sides could meet
        raise UserError(f"box_noise_amount must be in [0, 0.5), not {request['box_noise_amount']}.")
    if request["seed"] < 0:
        raise UserError(f"The seed must not be negative, but is {request['seed']}.")


def _is_there(root: Path, request: dict) -> bool:
    """Whether ``root`` holds exactly this request. UserError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = "Delete it or choose another folder."
    for split in SPLITS:
        try:
            info = json.loads(_annotation_file(root, split).read_bytes())["info"]
            images = sum(1 for _ in (root / split).glob("*.jpg"))
            if info["description"] != DESCRIPTION:
                raise ValueError
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(
                f"{root} already exists, but holds no complete DigitScenes. {remedy}"
            ) from None
        for key, wanted in {**_info(split, request), **request}.items():
            there = info.get(key, 0.0 if key == "class_noise_share" else None)
            if there != wanted:
                raise UserError(
                    f"{root} already holds DigitScenes with {key} {there}, not {wanted} as "
                    f"requested. {remedy}"
                )
        if images != request[f"num_{split}"]:
            raise UserError(
                f"{root / split} holds {images} of {request[f'num_{split}']} images. {remedy}"
            )
    return True


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _info(split: str, request: dict) -> dict:
    info = {"description": DESCRIPTION, "version": VERSION, "split": split, **request}
    if not request["class_noise_share"]:
        del info["class_noise_share"]  # the file is then what it was before there was such noise
    return info


def _load_materials() -> dict[str, _Material]:
    """Scans and photographs of both splits, without anything in common."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError:
        raise UserError(
            "DigitScenes is made from pictures inside scikit-learn, which is not installed. "
            "Install it with: pip install 'swn_d2[demo]'"
        ) from None
    digits = load_digits()
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    materials = {}
    for split in SPLITS:
        indices = _scan_indices(digits.target, split)
        # Cut before any resizing: a resampling filter may read beyond the box that it is given.
        left, right = (0, SPLIT_COLUMN) if split == "train" else (SPLIT_COLUMN, PHOTO_WIDTH)
        materials[split] = _Material(
            scans=[_enlarge(digits.images[i]) for i in indices],
            labels=digits.target[indices],
            photographs=[p.crop((left, 0, right, p.height)) for p in photographs],
        )
    return materials


def _scan_indices(labels: np.ndarray, split: str) -> np.ndarray:
    """Per class the first ``TRAIN_SHARE`` of the scans is for training, the rest for validation."""
    chosen = []
    for digit in range(10):
        of_class = np.flatnonzero(labels == digit)
        cut = round(TRAIN_SHARE * len(of_class))
        chosen.append(of_class[:cut] if split == "train" else of_class[cut:])
    return np.concatenate(chosen)


def _enlarge(scan: np.ndarray) -> Image.Image:
    """An (8, 8) scan with values 0 to 16 as a smooth picture that can be warped."""
    grey = np.pad(scan * (255 / 16), PADDING).round().astype(np.uint8)
    side = CELL * len(grey)
    return Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC)


def _write_split(root: Path, split: str, material: _Material, request: dict) -> None:
    (root / split).mkdir(parents=True)
    width, height = request["image_size"]
    box_noise_share = request["box_noise_share"] if split == "train" else 0.0
    class_noise_share = request["class_noise_share"] if split == "train" else 0.0
    images, annotations = [], []
    for image_id in range(1, request[f"num_{split}"] + 1):
        # One generator per image and purpose: images do not depend on each other, nor on noise.
        key = [request["seed"], SPLITS.index(split), image_id]
        picture, digits = _draw_scene(np.random.default_rng([*key, 0]), material, (width, height))
        noise, class_noise = (np.random.default_rng([*key, purpose]) for purpose in (1, 2))
        file_name = f"{image_id:06d}.jpg"
        Image.fromarray(picture).save(root / split / file_name, quality=92)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for digit in digits:
            clean = _xywh(digit.box)
            jittered = jitter(noise, clean, request["box_noise_amount"], (width, height))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": digit.label + 1,
                "bbox": jittered if noise.random() < box_noise_share else clean,
                "clean_bbox": clean,
                "area": int(digit.mask.sum()),
                "segmentation": _run_lengths(digit.mask),
                "iscrowd": 0,
            }
            if class_noise_share:
                annotation["clean_category_id"] = digit.label + 1
                other = (digit.label + int(class_noise.integers(1, 10))) % 10
                if class_noise.random() < class_noise_share:
                    annotation["category_id"] = other + 1
            annotations.append(annotation)
    content = {
        "info": _info(split, request),
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)
        ],
    }
    path = _annotation_file(root, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")))


def _draw_scene(
    rng: np.random.Generator, material: _Material, size: tuple[int, int]
) -> tuple[np.ndarray, list[_Digit]]:
    """One picture, (H, W, 3) uint8, and the digits on it. There is always at least one."""
    picture = _draw_background(rng, material.photographs, size)
    digits = []
    for _ in range(rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1], endpoint=True)):
        index = rng.integers(len(material.scans))
        ink = _draw_ink(rng, material.scans[index], min(size))
        place = _find_place(rng, ink > 0.5, digits, size)
        if place is None:
            continue
        x, y = place
        mask = np.zeros(picture.shape[:2], dtype=bool)
        mask[y : y + ink.shape[0], x : x + ink.shape[1]] = ink > 0.5
        digits.append(_Digit(int(material.labels[index]), mask, _extents(mask)))
        patch = picture[y : y + ink.shape[0], x : x + ink.shape[1]]
        patch += ink[..., None] * (_choose_colour(rng, patch, ink) - patch)
    return (picture * 255).round().astype(np.uint8), digits


def _draw_background(
    rng: np.random.Generator, photographs: list[Image.Image], size: tuple[int, int]
) -> np.ndarray:
    """A random cut of a photograph, perhaps mirrored, in slightly other light; (H, W, 3) in 0..1"""
    photograph = photographs[rng.integers(len(photographs))]
    largest = min(photograph.width / size[0], photograph.height / size[1])
    scale = largest * rng.uniform(0.4, 1)
    width, height = scale * size[0], scale * size[1]
    x = rng.uniform(0, photograph.width - width)
    y = rng.uniform(0, photograph.height - height)
    cut = photograph.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    light = rng.uniform(0.7, 1.2) * rng.uniform(0.9, 1.1, size=3)
    return np.clip(np.asarray(cut) / 255 * light, 0, 1)


def _draw_ink(rng: np.random.Generator, scan: Image.Image, image_side: int) -> np.ndarray:
    """How much ink covers each pixel, (h, w) in 0..1: a scan at a random size, turned and slanted.

    Sizes are uniform on a log scale, as in photographs of things at different distances.
    """
    size = image_side * math.exp(rng.uniform(*np.log(DIGIT_SIZE)))
    angle = math.radians(rng.uniform(-12, 12))
    slant = rng.uniform(-0.15, 0.15)
    stretch = rng.uniform(0.85, 1.1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1 / stretch, slant], [0, 1]]) * (8 * CELL / size)  # to the scan
    side = math.ceil(1.6 * size)
    offset = np.full(2, scan.width / 2) - matrix @ np.full(2, side / 2)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    warped = scan.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    # Grey falls from 1 to 0 over about one scan pixel; sharpen that to an edge of about one pixel.
    edge = min(0.5, 10 / size)
    ink = np.clip((np.asarray(warped) / 255 - INK_LEVEL) / edge + 0.5, 0, 1)
    x0, y0, x1, y1 = _extents(ink > 0)
    return ink[y0:y1, x0:x1]


def _find_place(
    rng: np.random.Generator, mask: np.ndarray, digits: list[_Digit], size: tuple[int, int]
) -> tuple[int, int] | None:
    """Where the corner of ``mask`` may lie: inside the image, on no digit, beside no box too far.

    None if ten random places were all taken.
    """
    height, width = mask.shape
    box = np.array(_extents(mask))
    for _ in range(10):
        x = int(rng.integers(size[0] - width, endpoint=True))
        y = int(rng.integers(size[1] - height, endpoint=True))
        moved = box + [x, y, x, y]
        if not any(
            _iou(moved, other.box) > MAX_BOX_IOU
            or (other.mask[y : y + height, x : x + width] & mask).any()
            for other in digits
        ):
            return x, y
    return None


def _choose_colour(rng: np.random.Generator, patch: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """A random RGB colour that stands out from the part of ``patch`` behind the ink."""
    behind = np.average(patch @ LUMA, weights=ink)
    colours = rng.random((256, 3))
    contrast = np.minimum(np.abs(colours @ LUMA - behind), MIN_CONTRAST)
    return colours[contrast.argmax()]  # the first with enough contrast, else the one with the most


def _extents(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the True pixels of an (H, W) mask; x1 and y1 lie just outside."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _xywh(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _iou(a: np.ndarray, b: tuple[int, int, int, int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return intersection / (areas - intersection)


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths. Unlike polygons they hold the holes of 0, 6, 8 and 9."""
    from pycocotools.mask import encode

    encoded = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
