"""Installs Detectron2, which is not on the package registry under its own name.

An importable Detectron2 is kept, whatever its version. Otherwise the registry's one copy of its
sources, a Windows wheel of upstream commit 133d22ed, is downloaded with pip, checked, adapted to
today's Python, numpy, Pillow and torch (CHANGES says how), and installed as a pure-Python
`detectron2`. Needs pip and the standard library only.

    python tools/install_detectron2.py                     # install, unless there is one already
    python tools/install_detectron2.py --wheel-dir wheels  # only build the wheel
"""

import argparse
import base64
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

SOURCE = "geoai-detectron2==0.4"
SOURCE_SHA256 = "6eb280a50dbc3536caa9dc73229dfbbe0bda4fea6692c17803584dda680fad8d"
# The wheel is tagged for Windows and Python 3.7; asked for like this, pip hands it to anyone.
DOWNLOAD_OPTIONS = (
    "--platform win_amd64 --python-version 3.7 --implementation cp --abi cp37m "
    "--only-binary=:all: --no-deps"
).split()

VERSION = "0.4+133d22ed"
DIST_INFO = f"detectron2-{VERSION}.dist-info"
WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"
COMPILED_STAND_IN = Path(__file__).with_name("detectron2_wheel") / "_C.py"
# What `import detectron2.<anything we use>` needs. OpenCV, for drawing, is left out as upstream
# does: any of its builds will do.
REQUIREMENTS = """
torch
torchvision
numpy
Pillow
pycocotools>=2.0.2
fvcore>=0.1.5
iopath>=0.1.7
yacs>=0.1.6
omegaconf>=2.1
hydra-core>=1.1
cloudpickle
termcolor>=1.1
tabulate
tqdm>4.29.0
matplotlib
tensorboard
""".split()


class Change(NamedTuple):
    """`count` places where regular expression `old` becomes `new`, in all files like `files`."""

    files: str
    old: str
    new: str
    count: int
    why: str


CHANGES = (
    Change("*", r"\r\n", r"\n", 37705, "line ends of the original"),
    Change("*.py", r"\bnp\.(bool|float|int|str)\b", r"\1", 18, "gone from numpy"),
    Change(
        "detectron2/layers/mask_ops.py",
        r"np\.array\(mask, copy=False\)",
        "np.asarray(mask)",
        1,
        "numpy 2 refuses copy=False where a copy is needed",
    ),
    Change(
        "detectron2/data/transforms/transform.py",
        r"Image\.LINEAR",
        "Image.BILINEAR",
        1,
        "gone from Pillow",
    ),
    Change(
        "detectron2/model_zoo/model_zoo.py",
        r"import pkg_resources\n",
        "",
        1,
        "gone from setuptools",
    ),
    Change(
        "detectron2/model_zoo/model_zoo.py",
        r'pkg_resources\.resource_filename\(\n +"detectron2\.model_zoo", (.+)\n',
        r"os.path.join(\n        os.path.dirname(__file__), \1\n",
        1,
        "gone from setuptools",
    ),
    Change(
        "detectron2/evaluation/coco_evaluation.py",
        r"use_fast_impl=True",
        "use_fast_impl=False",
        2,
        "the fast implementation is compiled; the default is now the official one",
    ),
    Change(
        "detectron2/modeling/anchor_generator.py",
        r"torch\.meshgrid\(shifts_y, shifts_x\)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
        "torch warns without it",
    ),
    Change(
        "detectron2/utils/comm.py",
        r"storage = torch\.ByteStorage\.from_buffer\(buffer\)\n    tensor = .+?\(storage\)",
        "tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8)",
        1,
        "torch warns of typed storages",
    ),
    Change(
        "detectron2/data/detection_utils.py",
        r"target\.gt_boxes = Boxes\(boxes\)",
        "target.gt_boxes = Boxes(np.asarray(boxes).reshape(-1, 4))",
        1,
        "torch warns of lists of arrays",
    ),
    Change("*.py", r"(?<!warnings)\.warn\(", ".warning(", 9, "Python warns of Logger.warn"),
)


class InstallError(Exception):
    """What is wrong and how to mend it, in one sentence."""


def apply_changes(sources: dict[str, str], changes=CHANGES) -> dict[str, str]:
    """Applies `changes` in order to `sources`, {path: text}, and returns the changed sources.

    Raises InstallError where a change does not match as often as it says.
    """
    sources = dict(sources)
    for change in changes:
        found = 0
        for path in [path for path in sources if fnmatch(path, change.files)]:
            sources[path], n = re.subn(change.old, change.new, sources[path])
            found += n
        if found != change.count:
            raise InstallError(
                f"cannot adapt Detectron2's sources: expected {change.count} matches of "
                f"{change.old!r} in {change.files}, found {found}; the change and its count stand "
                f"in CHANGES of {Path(__file__).name}."
            )
    return sources


def build_wheel(source: Path, folder: Path, sha256: str = SOURCE_SHA256) -> Path:
    """Turns the registry's wheel `source` into the pure-Python one, written to `folder`.

    Returns its path; the same source always gives the same bytes. Raises InstallError if `source`
    has another SHA-256 than `sha256`, or if a source change does not fit.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != sha256:
        raise InstallError(
            f"{source.name} has SHA-256 {digest} instead of {sha256}; delete it and get the "
            f"original with `pip download {SOURCE} {' '.join(DOWNLOAD_OPTIONS)}`."
        )
    with zipfile.ZipFile(source) as archive:
        originals = {name: archive.read(name) for name in archive.namelist()}
    texts = {
        name: data.decode("utf-8")
        for name, data in originals.items()
        if name.startswith("detectron2/") and name.endswith((".py", ".yaml"))
    }
    files = apply_changes(texts)
    files["detectron2/_C.py"] = COMPILED_STAND_IN.read_text(encoding="utf-8")
    licence = next(data for name, data in originals.items() if name.endswith(".dist-info/LICENSE"))
    files[f"{DIST_INFO}/LICENSE"] = licence.decode("utf-8").replace("\r\n", "\n")
    files[f"{DIST_INFO}/METADATA"] = _metadata()
    files[f"{DIST_INFO}/WHEEL"] = (
        "Wheel-Version: 1.0\n"
        f"Generator: {Path(__file__).name}\n"
        "Root-Is-Purelib: true\n"
        "Tag: py3-none-any\n"
    )
    record = f"{DIST_INFO}/RECORD"
    files[record] = "".join(_record_line(*item) for item in sorted(files.items())) + f"{record},,\n"

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL_NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            # A ZipInfo made from a name alone carries a fixed date, so the bytes repeat.
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return wheel


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 (upstream commit 133d22ed) as a pure-Python build.",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "",
        f"Built from {SOURCE}. The compiled module is replaced by one that says what is missing.",
        "Changes to the sources (files; places; reason):",
        "",
        *(f"- {change.files}; {change.count}; {change.why}" for change in CHANGES),
    ]
    return "\n".join(lines) + "\n"


def _record_line(name: str, text: str) -> str:
    data = text.encode("utf-8")
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def _pip(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        # pip ends on its error; where pip itself is missing, Python says so in the last line.
        reason = (result.stdout.splitlines() or [f"exit status {result.returncode}"])[-1]
        raise InstallError(
            f"`pip {arguments[0]} {arguments[1]}` failed ({reason.strip()}); check the connection "
            "to your package registry, and that the disk has space."
        )


def download(folder: Path, requirement: str = SOURCE, options=DOWNLOAD_OPTIONS) -> Path:
    """Downloads the registry's wheel of `requirement` into `folder` and returns its path."""
    _pip("download", requirement, *options, "--dest", str(folder))
    return next(folder.glob("*.whl"))


def installed() -> str | None:
    """Version and folder of this environment's Detectron2, or None if it has none."""
    if importlib.util.find_spec("detectron2") is None:
        return None
    try:
        import detectron2
        import detectron2.layers  # needs the compiled module, where builds break
    except Exception as e:
        raise InstallError(
            f"this environment has a Detectron2 that cannot be imported ({e}); rebuild it for "
            f"the installed torch, or uninstall it and run {Path(__file__).name} again."
        ) from e
    return f"Detectron2 {detectron2.__version__} in {Path(detectron2.__file__).parent}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel-dir", type=Path, help="only build the wheel, into this folder")
    parser.add_argument("--source", type=Path, help=f"the wheel of {SOURCE}, already downloaded")
    args = parser.parse_args(argv)
    try:
        if args.wheel_dir is None:
            found = installed()
            if found:
                print(f"keeping {found}")
                return
        with tempfile.TemporaryDirectory() as scratch:
            source = args.source or download(Path(scratch))
            wheel = build_wheel(source, args.wheel_dir or Path(scratch))
            if args.wheel_dir is None:
                _pip("install", str(wheel))
                print(f"installed Detectron2 {VERSION} (pure Python)")
            else:
                print(wheel)
    except (InstallError, OSError) as e:  # an OSError names the file by itself
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
