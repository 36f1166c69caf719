#!/usr/bin/env python3
"""Train one of torchvision's detectors with sample weights. It needs no Detectron2.

What the weights need is in `train`: four lines, beside the training loop that torchvision's users
have. The rest of this file is data, a detector that is small enough for a CPU, and evaluation.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.transforms.functional import pil_to_tensor

from swn_d2.errors import UserError, add_debug_argument, phase, user_errors_exit
from swn_d2.torchvision import join_adam, record_samples, weight_samples
from swn_d2.weighting import SWN, SampleWeighter, Uniform

DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")
DIGIT_SCENES = "datasets/digit_scenes"  # tools/make_digit_scenes.py writes it
LOG_PERIOD = 20  # iterations
WRITTEN = ("metrics.json", "samples.jsonl", "model.pth")  # in the folder of a run


def train(args: argparse.Namespace, model: nn.Module, data: "CocoFolder", folder: Path) -> None:
    """Train a detector, and leave its metrics, its recording and its weights in a folder."""
    weight_samples(model, build_weighter(args))
    sgd = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
    optimizer = join_adam(sgd, model)
    recorder = record_samples(model, folder, num_iterations=args.iterations, period=LOG_PERIOD)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule, args.iterations))
    torch.manual_seed(args.seed)  # the same regions are sampled, whatever the weighter
    model.train()
    for iteration, (images, targets) in enumerate(batches(args, data)):
        losses = model(images, targets)
        total = sum(losses.values())
        if not total.isfinite():
            raise UserError(f"the loss is {total.item()} in iteration {iteration}; lower --lr.")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        scheduler.step()
        if (iteration + 1) % LOG_PERIOD == 0:
            values = {name: loss.item() for name, loss in losses.items()}
            row = {"iteration": iteration, "lr": sgd.param_groups[0]["lr"], **recorder.scalars}
            # The report knows losses by their names, which begin with loss_ in a Faster R-CNN.
            row |= {f"loss_{name.removeprefix('loss_')}": v for name, v in values.items()}
            log(folder, row | {"total_loss": total.item()})
            print(f"{iteration + 1}: " + ", ".join(f"{n} {v:.3f}" for n, v in values.items()))
    torch.save(model.state_dict(), folder / "model.pth")


def build_weighter(args: argparse.Namespace) -> SampleWeighter:
    """SWN as swn_d2's configs have it by default, eased in when the detector can detect."""
    if args.weighter == "Uniform":
        return Uniform()
    return SWN(
        box_loss_dim=4 if args.detector.endswith("rcnn") else 1,  # smooth-L1, or GIoU
        has_mask=args.detector == "mask_rcnn",
        strength=0.5,
        ease_in=(args.iterations // 2, args.iterations * 3 // 4),
    )


def schedule(num_iterations: int, iteration: int) -> float:
    """The factor of both learning rates: a warm-up, and two steps down."""
    warm_up = min((iteration + 1) / min(100, num_iterations), 1.0)
    return warm_up * 0.1 ** sum(iteration >= share * num_iterations for share in (0.7, 0.9))


def batches(args: argparse.Namespace, data: "CocoFolder") -> Iterator[tuple[list, list]]:
    """As many as there are iterations, in an order that follows from the seed."""
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(
        data,
        args.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
        generator=order,
    )
    endless = chain.from_iterable(iter(loader) for _ in iter(int, 1))
    for _, (images, targets) in zip(range(args.iterations), endless, strict=False):
        yield (
            [image.to(args.device) for image in images],
            [
                {k: v.to(args.device) if torch.is_tensor(v) else v for k, v in target.items()}
                for target in targets
            ],
        )


class CocoFolder(Dataset):
    """Images and objects in COCO's format, as torchvision's detectors want them.

    Attributes:
        coco: the annotations.
        labels: category id -> label, counted from 1, since 0 is torchvision's background.
    """

    def __init__(self, annotations: str, images: str, *, masks: bool):
        with contextlib.redirect_stdout(None), phase(f"reading the annotations {annotations}"):
            self.coco = COCO(annotations)
        for annotation in self.coco.anns.values():  # which COCO's evaluation needs
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        self.labels = {c: i for i, c in enumerate(sorted(self.coco.getCatIds()), start=1)}
        self.image_ids = sorted(self.coco.getImgIds())
        self._folder = Path(images)
        self._masks = masks
        if not self.image_ids or not self.labels:
            raise UserError(f"{annotations} has no images or no categories.")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        image_id = self.image_ids[index]
        with phase(f"reading image {image_id} in {self._folder}, or its annotations,"):
            return self._read(image_id)

    def _read(self, image_id: int) -> tuple[torch.Tensor, dict]:
        file_name = self.coco.imgs[image_id]["file_name"]
        picture = Image.open(self._folder / file_name)
        if picture.mode[0] in "IF":  # which Pillow would make all white
            raise UserError(f"{file_name} has more than 8 bits a channel; convert it to 8.")
        # Upright, as it was annotated.
        image = pil_to_tensor(ImageOps.exif_transpose(picture).convert("RGB")) / 255
        objects = [
            annotation
            for annotation in self.coco.imgToAnns[image_id]
            if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) > 0
        ]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": boxes,
            "labels": torch.tensor([self.labels[o["category_id"]] for o in objects]).long(),
            "file_name": file_name,
        }
        if self._masks:
            masks = [torch.from_numpy(self.coco.annToMask(o)) for o in objects]
            target["masks"] = torch.stack(masks) if masks else torch.zeros(0, *image.shape[1:])
        return image, target


def build_detector(name: str, num_classes: int, short_side: int) -> nn.Module:
    """A small detector on a ResNet-18 with a narrow feature pyramid. Any other one that torchvision
    has can take its place, such as ``fasterrcnn_resnet50_fpn(weights="DEFAULT")``.

    Args:
        num_classes: with the background.
        short_side: to which images are resized.
    """
    is_rcnn = name.endswith("rcnn")
    channels, layers = 64, [1, 2, 3, 4] if is_rcnn else [2, 3, 4]
    backbone = BackboneWithFPN(
        resnet18(),
        {f"layer{layer}": str(i) for i, layer in enumerate(layers)},
        [32 * 2**layer for layer in layers],
        channels,
        LastLevelMaxPool() if is_rcnn else LastLevelP6P7(channels, channels),
    )
    sides = [16, 32, 64, 128, 256]
    size = {"min_size": short_side, "max_size": 2 * short_side}
    if name == "fcos":
        anchors = AnchorGenerator([[side // 2] for side in sides], [[1.0]] * 5)
        return FCOS(backbone, num_classes, anchor_generator=anchors, **size)
    if name == "retinanet":
        sizes = [[round(side * 2 ** (i / 3)) for i in range(3)] for side in sides]
        anchors = AnchorGenerator(sizes, [[0.5, 1.0, 2.0]] * 5)
        model = RetinaNet(backbone, num_classes, anchor_generator=anchors, **size)
        # torchvision's L1 does not flatten out near 0, which SWN needs: docs/weighting.md.
        model.head.regression_head._loss_type = "giou"
        return model
    group_norm = partial(nn.GroupNorm, 32)
    parts = {
        "rpn_anchor_generator": AnchorGenerator([[s] for s in sides], [[0.5, 1.0, 2.0]] * 5),
        "rpn_pre_nms_top_n_train": 500,
        "rpn_post_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_test": 150,
        "box_batch_size_per_image": 64,
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [channels] * 2, [256], group_norm),
        "box_predictor": FastRCNNPredictor(256, num_classes),
    }
    if name == "faster_rcnn":
        return FasterRCNN(backbone, **parts, **size)
    parts["mask_head"] = MaskRCNNHeads(channels, [channels] * 2, 1)
    parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes)
    return MaskRCNN(backbone, **parts, **size)


@torch.no_grad()
def evaluate(args: argparse.Namespace, model: nn.Module, data: CocoFolder) -> dict[str, float]:
    """AP in percent by pycocotools, by the names that swn_d2's report knows."""
    categories = {label: category for category, label in data.labels.items()}
    results = []
    model.eval()
    for image_id, (image, _) in zip(data.image_ids, data, strict=False):
        (found,) = model([image.to(args.device)])
        masks = found.get("masks", [None] * len(found["boxes"]))
        for box, label, score, mask in zip(
            found["boxes"].tolist(),
            found["labels"].tolist(),
            found["scores"].tolist(),
            masks,
            strict=True,
        ):
            x1, y1, x2, y2 = box
            entry = {
                "image_id": image_id,
                "category_id": categories.get(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            if mask is not None:
                pixels = (mask[0] > 0.5).byte().cpu().numpy()
                entry["segmentation"] = coco_mask.encode(pixels.copy(order="F"))
            results.append(entry)
    results = [entry for entry in results if entry["category_id"] is not None]
    metrics = {}
    for task in ("bbox", "segm") if args.detector == "mask_rcnn" else ("bbox",):
        stats = [0.0] * 6
        if results:
            with contextlib.redirect_stdout(None):
                evaluation = COCOeval(data.coco, data.coco.loadRes(results), task)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            stats = evaluation.stats[:6]
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        # -1 stands for no object of that size.
        metrics |= {
            f"{task}/{n}": 100 * float(s) for n, s in zip(names, stats, strict=True) if s >= 0
        }
    return metrics


def log(folder: Path, row: dict[str, float]) -> None:
    """Add a line to the run's metrics.json."""
    with open(folder / "metrics.json", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def load_weights(model: nn.Module, file: str) -> None:
    """Load a state dict, with a sample weighter's parameters or without."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = {name: value for name, value in state.items() if "sample_weighter" not in name}
    shapes, own = (
        {name: value.shape for name, value in s.items()} for s in (state, model.state_dict())
    )
    if shapes != own:
        differing = min(name for name in {*shapes, *own} if shapes.get(name) != own.get(name))
        raise UserError(
            f"{file} is not of this detector: it differs in {differing}; give the model.pth of a "
            "run with the same --detector and as many categories."
        )
    model.load_state_dict(state)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Train one of torchvision's detectors with sample weights on data in COCO's "
        "format, record what the weights do, and evaluate.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--detector", choices=DETECTORS, default="faster_rcnn")
    parser.add_argument(
        "--weighter", choices=("SWN", "Uniform"), default="SWN", help="Uniform is the baseline"
    )
    for name in ("train", "val"):
        files = [f"{DIGIT_SCENES}/annotations/instances_{name}.json", f"{DIGIT_SCENES}/{name}"]
        parser.add_argument(f"--{name}", nargs=2, metavar=("JSON", "IMAGES"), default=files)
    parser.add_argument("--output", default="output/torchvision", help="a folder for the run")
    parser.add_argument("--weights", help="a state dict to start from, a run's model.pth")
    parser.add_argument("--iterations", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.02, help="of the detector's SGD")
    parser.add_argument("--short-side", type=int, default=160, help="of the images, in pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_debug_argument(parser)
    args = parser.parse_args(argv)
    for name in ("iterations", "batch_size", "lr", "short_side"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be greater than 0")
    return args


def main(argv: list[str] | None = None) -> None:
    """Train and evaluate."""
    args = parse_args(argv)
    folder = Path(args.output)
    with user_errors_exit():
        # Nothing of a run, or of yours, is written over.
        if there := [name for name in WRITTEN if (folder / name).exists()]:
            raise UserError(f"{folder} has a run already ({there[0]}); give another --output.")
        masks = args.detector == "mask_rcnn"
        with phase("reading the data"):
            data, val = (CocoFolder(*files, masks=masks) for files in (args.train, args.val))
            names, of_val = ({c: x["name"] for c, x in d.coco.cats.items()} for d in (data, val))
            if names != of_val:
                raise UserError("--train and --val have different categories; they must agree.")
            if len(data) < args.batch_size:
                raise UserError(
                    f"--batch-size is {args.batch_size}, but {args.train[0]} has {len(data)} "
                    "images; lower it."
                )
            for dataset in (data, val):
                dataset[0]
        torch.manual_seed(args.seed)
        model = build_detector(args.detector, len(data.labels) + 1, args.short_side)
        if args.weights:
            with phase("loading the weights"):
                load_weights(model, args.weights)
        with phase(f"moving the detector to the device {args.device}"):
            model.to(args.device)
        train(args, model, data, folder)
        metrics = evaluate(args, model, val)
    log(folder, {"iteration": args.iterations - 1, **metrics})
    print(", ".join(f"{name} {value:.1f}" for name, value in metrics.items()))
    print(f"{folder}: tools/report.py makes a page of it.")


if __name__ == "__main__":
    main()
