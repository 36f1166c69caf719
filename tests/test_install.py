"""The Detectron2 installer: its wheel, and its one-sentence errors.

The wheel is built from the real registry file (one download) and put into a folder of its own, so
that these tests say the same whether the environment holds this build or a compiled Detectron2.
"""

import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "install_detectron2.py"
_spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
installer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(installer)


def run(*arguments, **environment):
    """Runs Python in a fresh interpreter, with `environment` added to this one's."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def assert_one_sentence(result, *parts):
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return installer.download(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return installer.build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder that holds the built Detectron2, to be put first on Python's path."""
    folder = tmp_path_factory.mktemp("site")
    result = run("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def doctored(source, tmp_path):
    """The registry's wheel with one line of one source file gone."""
    path = tmp_path / source.name
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "detectron2/model_zoo/model_zoo.py":
                data = data.replace(b"import pkg_resources\r\n", b"\r\n")
            new.writestr(name, data)
    return path


LAYERS, ZOO, PROJECT = "detectron2.layers", "detectron2.model_zoo", "detectron2.projects.point_rend"
ORDERS = [(LAYERS, PROJECT, ZOO), (ZOO, LAYERS, PROJECT), (PROJECT, ZOO, LAYERS)]


def test_modules_import_in_any_order_without_swn_d2(site):
    """Each order in a child of a process that has imported torch and nothing of Detectron2."""
    code = f"""
import importlib, os, sys, torchvision
for order in {ORDERS}:
    if os.fork():
        status = os.waitstatus_to_exitcode(os.wait()[1])
        assert status == 0, (order, status)
        continue
    assert 'detectron2' not in sys.modules
    for name in order:
        importlib.import_module(name)
    assert 'swn_d2' not in sys.modules and 'pkg_resources' not in sys.modules
    import detectron2
    print(detectron2.__file__)
    print(detectron2.model_zoo.get_config_file('COCO-Detection/retinanet_R_50_FPN_1x.yaml'))
    sys.exit()
"""
    result = run("-c", code, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    printed = result.stdout.splitlines()
    assert len(printed) == 2 * len(ORDERS)
    for package, config in zip(printed[::2], printed[1::2], strict=True):
        assert Path(package).parents[1] == site
        assert Path(config).is_file()


def test_what_needs_compiled_code_says_so(site):
    """Goes in by Detectron2's own doors (the deformable ones open on a GPU only)."""
    code = """
import contextlib
import torch
from pycocotools.coco import COCO
from detectron2 import layers
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.layers import rotated_boxes

def rotated_nms():
    layers.nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)

def rotated_iou():
    rotated_boxes.pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))

def rotated_roi_align():
    layers.ROIAlignRotated((2, 2), 1.0, 0)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 6))

def fast_coco_evaluation():
    with contextlib.redirect_stdout(None):
        truth = COCO()
        truth.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}
        truth.createIndex()
        COCOeval_opt(truth, truth, "bbox").evaluate()

for call in (rotated_nms, rotated_iou, rotated_roi_align, fast_coco_evaluation):
    try:
        call()
    except (NotImplementedError, AttributeError) as e:
        print(e)
"""
    result = run("-c", code, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    sentences = result.stdout.splitlines()
    names = "nms_rotated", "box_iou_rotated", "roi_align_rotated_forward", "COCOevalEvaluateImages"
    assert len(sentences) == len(names)
    for name, sentence in zip(names, sentences, strict=True):
        assert sentence.startswith(f"detectron2._C.{name} is compiled code")
    assert "use_fast_impl=False" in sentences[-1]


def test_wheel_is_pure_consistent_and_reproducible(source, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    record = f"{installer.DIST_INFO}/RECORD"
    listed = {row[0]: row[1:] for row in csv.reader(io.StringIO(files[record].decode()))}
    assert listed.pop(record) == ["", ""]
    assert listed.keys() == files.keys() - {record}
    for name, (digest, size) in listed.items():
        expected = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest())
        assert digest == "sha256=" + expected.decode().rstrip("=")
        assert int(size) == len(files[name])
    assert not [name for name in files if name.endswith((".pyd", ".so", ".dll"))]
    assert not [name for name, data in files.items() if b"\r" in data]
    # The source's 191 modules and the stand-in for the compiled one.
    assert sum(name.endswith(".py") for name in files) == 192
    assert installer.build_wheel(source, tmp_path).read_bytes() == wheel.read_bytes()


def test_source_with_another_hash_is_refused(doctored, tmp_path):
    target = tmp_path / "wheels"
    result = run(SCRIPT, "--source", doctored, "--wheel-dir", target)
    actual = hashlib.sha256(doctored.read_bytes()).hexdigest()
    assert_one_sentence(result, doctored.name, actual, installer.SOURCE_SHA256)
    assert not target.exists()


def test_change_that_does_not_match_is_an_error(doctored, tmp_path):
    digest = hashlib.sha256(doctored.read_bytes()).hexdigest()
    with pytest.raises(installer.InstallError) as error:
        installer.build_wheel(doctored, tmp_path / "wheels", sha256=digest)
    for part in ("detectron2/model_zoo/model_zoo.py", "import pkg_resources", "found 0"):
        assert part in str(error.value)
    assert not (tmp_path / "wheels").exists()


def test_missing_source_and_missing_registry_are_one_sentence(tmp_path):
    missing = tmp_path / "missing.whl"
    assert_one_sentence(run(SCRIPT, "--source", missing, "--wheel-dir", tmp_path), str(missing))
    result = run(SCRIPT, "--wheel-dir", tmp_path, PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert_one_sentence(result, installer.SOURCE, "check the connection")


def test_installed_detectron2_is_kept_and_named():
    detectron2 = pytest.importorskip("detectron2")
    result = run(SCRIPT)
    assert result.returncode == 0, result.stderr
    folder = Path(detectron2.__file__).parent
    assert result.stdout == f"keeping Detectron2 {detectron2.__version__} in {folder}\n"


def test_broken_detectron2_is_named_not_replaced(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import a_library_that_is_gone\n")
    result = run(SCRIPT, PYTHONPATH=str(tmp_path))
    assert_one_sentence(result, "a_library_that_is_gone", "uninstall")


def test_environment_is_consistent():
    if importlib.metadata.version("detectron2") != installer.VERSION:
        pytest.skip("another Detectron2 brings requirements of its own")
    result = run("-m", "pip", "check")
    assert result.returncode == 0, result.stdout
