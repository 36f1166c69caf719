"""The audit as a page for a person: the most suspicious annotations with their pictures."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .. import __version__
from ..analysis.page import Page, missing, table, text
from ..analysis.style import TEXT, color_of, new_figure, plain_axes
from ..evaluation.pictures import read_pixels
from ..recording import cut_out
from .annotations import to_xywh
from .audit import DUPLICATE, KINDS, MISPLACED_BOX, MISSING_OBJECT, WRONG_CLASS, Audit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_page"]

_NUM_PICTURED = 48  # of each kind
_LOWEST = 0.02  # suspicion of what is pictured
_CROP_SIZE = 220  # pixels of the longer side
_NUM_PICTURES = 20  # rows in the table of pictures
_NUM_CONFUSED = 3  # classes that one is confused with

_TITLES = {
    WRONG_CLASS: "Wrong classes",
    MISPLACED_BOX: "Badly placed boxes",
    DUPLICATE: "Duplicates",
    MISSING_OBJECT: "Missing objects",
}
_EXPLANATIONS = {
    WRONG_CLASS: "Annotations whose class does not go with what the object looks like, by what is "
    "usual in the other pictures. The percentage is the probability that the class is wrong.",
    MISPLACED_BOX: "Annotations whose box the detector moves as it moves boxes that were jittered "
    "on purpose. How many there are can hardly be told: no more than the high end of the interval.",
    DUPLICATE: "Annotations of the same class whose boxes nearly coincide with that of an earlier "
    "one. The percentage is their IoU, not a probability.",
    MISSING_OBJECT: "Places where the detector finds an object and nothing is annotated. The "
    "percentage is the probability that there is one.",
}

_DECIDE = (
    "What you have looked at, you can decide: write keep, change or drop into the last column of "
    "audit.csv, and tools/audit.py --write goes by it."
)
_BY_LOCALISER = (
    "Annotations whose box is as unlikely as boxes are that were jittered on purpose, to a "
    "localiser: a network that has learned from other pictures where objects of the class "
    "have their sides. The percentage is the probability that the box is badly placed, or only "
    "an order where no number is expected; that number is a bound."
)


def write_page(audit: Audit, file: Path, *, name: str) -> None:
    """Write the page. It needs no other file and no network.

    Args:
        name: of the run.

    Raises:
        UserError: a picture can't be read, or the file can't be written.
    """
    page = Page()
    page.section("numbers", "How many to expect", _numbers(audit), *_how_far(audit))
    for kind in audit.expected:
        of_kind = (
            _missing_cards(audit) if kind == MISSING_OBJECT else _annotation_cards(audit, kind)
        )
        cards = list(of_kind)
        shown = f'<ul class="cards">{"".join(cards)}</ul>' if cards else missing("None was found.")
        by_localiser = kind == MISPLACED_BOX and audit.localised
        how = _BY_LOCALISER if by_localiser else _EXPLANATIONS[kind]
        explained = f'<p class="how">{text(how)}</p>'
        page.section(kind.replace(" ", "-"), _TITLES[kind], explained, shown)
    page.section("histogram", "Suspicion", page.svg(_histogram(audit), "histogram of suspicion"))
    page.section("classes", "By class", _by_class(audit))
    page.section("pictures", "By picture", _by_picture(audit))
    title = f"{audit.annotations.file.name}: audit"
    head = (
        f'<p class="faint">Audit of annotations by {text(name)}</p>\n'
        f"<h1>{text(audit.annotations.file.name)}</h1>\n<p>{text(_summary(audit))}</p>"
        f"<p>{text(_DECIDE)}</p>"
    )
    foot = f'<p class="faint">Written by swn_d2 {text(__version__)}.</p>'
    page.write(file, title, head, foot)


def _summary(audit: Audit) -> str:
    number = len(audit.annotations.ids)
    expected = audit.expected[WRONG_CLASS]
    unknown = ""
    if audit.before_training:
        unknown = "" if audit.localised else " Boxes were not judged (--quick)."
        unknown += " Missing objects take a trained detector."
    wrong = (
        "How many have a wrong class can't be told: judges disagree with too many of those that "
        "they are surest of, or these are too few. If the list shows that they err, give weights "
        "of a better backbone with --weights."
    )
    if expected.is_known:
        share = expected.value / max(number, 1)
        wrong = f"About {expected.value:,.0f} of them, {share:.1%}, have a wrong class."
    return f"{number:,} annotations in {len(audit.annotations.images):,} pictures. {wrong}{unknown}"


def _numbers(audit: Audit) -> str:
    rows = []
    for kind, e in audit.expected.items():
        interval = "–" if e.low == e.high else f"{e.low:,.0f} to {e.high:,.0f}"
        number = f"{e.value:,.0f}" if e.is_known else "can't be told"
        rows.append([text(_TITLES[kind]), text(number), interval])
    return table(["kind", "expected", "95 % interval"], rows, "expected numbers of errors")


def _how_far(audit: Audit) -> list[str]:
    """How many are wrong among the first so many."""
    ordered = np.sort(audit.suspicion)[::-1]
    wrong = np.cumsum(ordered)
    ends = [n for n in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if n <= len(ordered)]
    rows = [[f"the first {n:,}", f"{wrong[n - 1]:,.0f}", _percent(ordered[n - 1])] for n in ends]
    head = ["of all annotations, by suspicion", "wrong among them", "suspicion of the last"]
    return ["<h3>How far to look</h3>", table(head, rows, "how far to look")]


def _annotation_cards(audit: Audit, kind: str) -> Iterable[str]:
    annotations, names = audit.annotations, audit.annotations.class_names
    suspicions = audit.suspicions
    column = suspicions[:, KINDS.index(kind)]
    of_kind = np.flatnonzero((suspicions.argmax(axis=1) == KINDS.index(kind)) & (column >= _LOWEST))
    chosen = of_kind[np.argsort(-column[of_kind], kind="stable")][:_NUM_PICTURED]
    for i in chosen:
        annotated = names[annotations.classes[i]]
        other = audit.boxes.suggestion[i]
        if kind == WRONG_CLASS:
            probs = audit.classes.probs[i].copy()
            probs[annotations.classes[i]] = 0
            best = int(probs.argmax())
            lines = [f"annotated: {annotated}", f"suggested: {names[best]} ({probs[best]:.0%})"]
        elif kind == MISPLACED_BOX:
            whose = "localiser" if audit.localised else "detector"
            lines = [f"annotated: {annotated}", f"solid: where the {whose} has it"]
        else:
            other = annotations.boxes[audit.earlier[i]]
            lines = [f"annotated: {annotated}", f"as is {annotations.ids[audit.earlier[i]]}"]
        lines.append(f"annotation {annotations.ids[i]}")
        image = int(annotations.image[i])
        yield _card(audit, image, column[i], annotations.boxes[i], other, lines)


def _missing_cards(audit: Audit) -> Iterable[str]:
    found, names = audit.missing, audit.annotations.class_names
    for i in np.argsort(-found.suspicion, kind="stable")[:_NUM_PICTURED]:
        if found.suspicion[i] < _LOWEST:
            break
        bbox = " ".join(map(str, to_xywh(found.boxes[i])))  # as in audit.csv
        lines = ["annotated: nothing", f"suggested: {names[found.classes[i]]}", f"at {bbox}"]
        yield _card(audit, int(found.image[i]), found.suspicion[i], None, found.boxes[i], lines)


def _card(
    audit: Audit,
    image: int,
    suspicion: float,
    annotated: np.ndarray | None,
    detected: np.ndarray,
    lines: list[str],
) -> str:
    """A picture with the annotated box dashed and the detector's solid, and what is to be said."""
    pixels = read_pixels(audit.annotations.picture_file(image))
    both = (detected, detected if annotated is None else annotated)
    jpeg, solid, dashed = cut_out(pixels, *both, size=_CROP_SIZE)
    boxes = _rectangle(solid, "detected")
    if annotated is not None:
        boxes += _rectangle(dashed, "annotated")
    source = base64.b64encode(jpeg).decode()
    width, height = Image.open(io.BytesIO(jpeg)).size
    name = audit.annotations.images[image]["file_name"]
    said = "".join(f"<span>{text(line)}</span>" for line in lines)
    return (
        f'<li><svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(name)}">'
        f'<image href="data:image/jpeg;base64,{source}" width="{width}" height="{height}"/>'
        f"{boxes}</svg><b>{_percent(suspicion)}</b>{said}"
        f'<span class="faint">{text(name)}</span></li>\n'
    )


def _percent(probability: float) -> str:
    return "over 99%" if 0.995 <= probability < 1 else f"{probability:.0%}"


def _rectangle(box: Iterable[float], kind: str) -> str:
    x0, y0, x1, y1 = box
    place = (
        f'x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}"'
    )
    return f'<rect class="edge" {place}/><rect class="{kind}" {place}/>'


def _histogram(audit: Audit) -> "Figure":
    figure = new_figure(7, 2.6)
    axis = figure.subplots()
    for i, kind in enumerate(KINDS):
        values = audit.suspicions[:, i]
        axis.hist(
            values[values > 0],
            bins=np.linspace(0, 1, 41),
            histtype="step",
            color=color_of(i),
            label=kind,
            linewidth=1.6,
        )
    axis.set(xlabel="suspicion", ylabel="annotations", xlim=(0, 1))
    if audit.suspicions.any():
        axis.set_yscale("log")
    plain_axes(axis)
    axis.legend(frameon=False, fontsize=9, labelcolor=TEXT)
    return figure


def _by_class(audit: Audit) -> str:
    annotations = audit.annotations
    number = np.bincount(annotations.classes, minlength=len(annotations.class_names))
    wrong = np.bincount(annotations.classes, audit.classes.suspicion, minlength=len(number))
    lacking = np.bincount(audit.missing.classes, audit.missing.suspicion, minlength=len(number))
    rows = [
        [
            text(annotations.class_names[k]),
            f"{number[k]:,}",
            f"{wrong[k]:,.1f}",
            f"{wrong[k] / max(number[k], 1):.1%}",
            text(_really(audit, k)),
            f"{lacking[k]:,.1f}",
        ]
        for k in np.argsort(-wrong, kind="stable")
    ]
    head = [
        "class, as annotated",
        "annotations",
        "wrong class",
        "share",
        "really",
        "missing objects",
    ]
    return table(head, rows, "errors to expect by class")


def _really(audit: Audit, k: int) -> str:
    """What the objects are that are wrongly annotated as class ``k``, and how many of them."""
    numbers = audit.classes.probs[audit.annotations.classes == k].sum(axis=0)
    numbers[k] = 0
    names = audit.annotations.class_names
    often = np.argsort(-numbers, kind="stable")[:_NUM_CONFUSED]
    return ", ".join(f"{names[i]} {numbers[i]:,.0f}" for i in often if numbers[i] >= 0.5) or "–"


def _by_picture(audit: Audit) -> str:
    annotations = audit.annotations
    number = np.bincount(annotations.image, minlength=len(annotations.images))
    wrong = np.bincount(annotations.image, audit.suspicion, minlength=len(number))
    lacking = np.bincount(audit.missing.image, audit.missing.suspicion, minlength=len(number))
    rows = [
        [
            text(annotations.images[i]["file_name"]),
            f"{number[i]:,}",
            f"{wrong[i]:,.1f}",
            f"{lacking[i]:,.1f}",
        ]
        for i in np.argsort(-(wrong + lacking), kind="stable")[:_NUM_PICTURES]
    ]
    return table(["picture", "annotations", "wrong", "missing"], rows, "pictures with most errors")
