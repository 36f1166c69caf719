#!/usr/bin/env python3
"""Find the wrong annotations of the data set that a detector was trained on. See docs/audit.md."""

import argparse
import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    require_matplotlib,
    require_scikit_learn,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()
    require_matplotlib()
    require_scikit_learn()

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from swn_d2.analysis.predictions import load_run_config
from swn_d2.audit.annotations import Annotations
from swn_d2.audit.audit import (
    KINDS,
    Audit,
    audit_before_training,
    audit_run,
    training_annotations,
)
from swn_d2.audit.decisions import decided, read_decisions
from swn_d2.audit.earlier import find_audit, made_of
from swn_d2.audit.files import corrected_json, is_as_written, to_csv, to_json, weighted_json
from swn_d2.audit.page import write_page
from swn_d2.audit.shares import Estimate
from swn_d2.config import load_config
from swn_d2.engine import folder_of_run
from swn_d2.files import (
    cannot_write,
    check_outputs,
    read_json,
    write_new,
    write_text,
    write_together,
)
from swn_d2.own import add_own_arguments, register_own

_NAMES = ("audit.json", "audit.csv", "audit.html")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Find the wrong annotations of the data set that a detector was trained on: "
        "wrong classes, badly placed boxes, duplicates, missing objects. Writes audit.html for a "
        "person, audit.json and audit.csv for programs.",
        epilog="Example: python tools/audit.py output/my_run --write cleaned.json --relabel",
    )
    parser.add_argument(
        "run", help="the folder of a training, whose last checkpoint is taken, or a config file"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write (default: in the run's)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="audit again, and replace the files of an earlier audit, and that of --write; without "
        "it, an audit of the same annotations, weights and options is taken as it is",
    )
    parser.add_argument("--weights", metavar="FILE", help="another checkpoint")
    parser.add_argument(
        "--before-training",
        action="store_true",
        help="judge classes and boxes, and find duplicates, before anything is trained, by the "
        "pretrained backbone that a config starts from. Needs --output",
    )
    parser.add_argument(
        "--quick",
        action=argparse.BooleanOptionalAction,
        help="train no localisers, which judge classes and boxes and take half of the time or "
        "more. Without them classes are judged less surely, and boxes far less surely, by the "
        "detector; before a training nobody judges boxes (the default is --no-quick, or what was "
        "chosen for the audit that is there)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="which one, if the run was trained on several"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the annotation file again, with weights for the class and the box of each "
        "annotation: the probability that they are right, or what the column decision of audit.csv "
        "says",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--drop-share",
        type=float,
        metavar="SHARE",
        help="with --write: weight 0 for this share of the annotations, the most suspicious, and "
        "1 for the others",
    )
    how.add_argument(
        "--drop-expected",
        action="store_true",
        help="with --write: the same for as many as are expected to be wrong",
    )
    how.add_argument(
        "--relabel",
        action="store_true",
        help="with --write: take over the suggestions that are more likely right than wrong",
    )
    add_own_arguments(parser)
    add_debug_argument(parser)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise a :class:`UserError` for options that do not fit together."""
    if args.drop_share is not None and not 0 <= args.drop_share <= 1:
        raise UserError(f"--drop-share is {args.drop_share}, but it must be from 0 to 1.")
    if args.before_training and (os.path.isdir(args.run) or args.output is None):
        raise UserError(
            "--before-training takes the config of the training to be, and the folder to write to "
            "as --output FOLDER; without it, give the folder of a training."
        )
    asked = args.drop_share is not None or args.drop_expected or args.relabel
    if asked and args.write is None:
        raise UserError(
            "--drop-share, --drop-expected and --relabel say what to write; name the file with "
            "--write FILE."
        )


def check_files(files: list[Path], overwrite: bool) -> None:
    """Raise a :class:`UserError` if a file exists that may not be replaced, or can't be written."""
    for file in files:
        if os.path.exists(file) and not overwrite:
            raise UserError(
                f"{file} exists already; replace it with --overwrite, or give another folder with "
                "--output, another file with --write."
            )
        folder = next(above for above in file.absolute().parents if os.path.exists(above))
        if os.path.isdir(file):
            raise UserError(f"cannot write {file}: it is a folder.")
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise UserError(
                f"cannot write {file}: {folder} is not a folder, or may not be written to."
            )


def check_written_here(file: Path) -> None:
    """Raise a :class:`UserError` if a file of annotations exists that no audit has written, or that
    was changed since."""
    if os.path.exists(file) and not is_as_written(read_json(file)):
        raise UserError(
            f"{file} exists, and is not what an audit has written: it is another file, or was "
            "changed since, or an earlier version wrote it; move it away, or give another one with "
            "--write."
        )


def check_no_decisions(file: Path, decisions: list[dict[str, str]]) -> None:
    """Raise a :class:`UserError` if a person's decisions would be lost."""
    if decisions:
        raise UserError(
            f"{file} has decisions ({len(decisions)}), which a new audit would overwrite; move it "
            "away, or name another folder with --output."
        )


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Meanwhile no other audit writes into a folder, which is made, and taken away again if nothing
    was written; else raise a :class:`UserError`."""
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another audit is being made in {folder}; wait for it, or give another folder "
                "with --output."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()


def start_weights(run: str) -> str:
    """The file of pretrained weights that a training started from; empty if it is not there."""
    folder = run if os.path.isdir(run) else folder_of_run(run)
    if folder is None:
        return ""
    weights = load_config(os.path.join(folder, "config.yaml")).MODEL.WEIGHTS
    if not weights:
        return ""
    with contextlib.suppress(Exception):  # of any kind, where a URL leads nowhere
        if os.path.isfile(PathManager.get_local_path(weights)):
            return weights
    print(
        f"{weights}, from which the training started, is not there: the trained backbone looks at "
        "the objects, and localisers start from it, instead of one that has not seen the "
        "annotations."
    )
    return ""


def show_progress(items: Sequence, what: str) -> Iterable:
    """A line for each round, and a bar below it where a person looks at it."""
    print(f"{what[0].upper()}{what[1:]}.", flush=True)
    return tqdm(items, disable=None, leave=False)


def judge(args: argparse.Namespace, cfg: CfgNode, annotations: Annotations, start: str) -> Audit:
    """The audit that the options ask for. It takes minutes."""
    how = {"localise": not args.quick, "progress": show_progress}
    if args.before_training:
        return audit_before_training(cfg, annotations, **how)
    return audit_run(cfg, annotations, start, **how)


def estimate_of(values: dict) -> Estimate:
    """An estimate as ``audit.json`` has it."""
    return Estimate(values["value"], values["low"], values["high"])


def print_expected(content: dict, number: int) -> None:
    """Say how many of so many annotations are wrong, by the content of an ``audit.json``."""
    print(f"{number:,} annotations. Expected to be wrong:")
    for kind, values in content["expected"].items():
        e = estimate_of(values)
        interval = f" ({e.low:,.0f} to {e.high:,.0f})" if e.low < e.high else ""
        print(f"  {kind}: {e.value:,.0f}{interval}" if e.is_known else f"  {kind}: can't be told")


def write_annotations(args: argparse.Namespace, annotations: Annotations, content: dict) -> None:
    """Write the annotation file again, by the content of an ``audit.json``."""
    if args.relabel:
        text = corrected_json(annotations, content)
    else:
        drop, kinds = None, KINDS
        if args.drop_share is not None:
            drop = round(args.drop_share * len(annotations.ids))
        elif args.drop_expected:
            expected = {
                kind: estimate_of(values)
                for kind, values in content["expected"].items()
                if kind in KINDS
            }
            drop = round(sum(estimate.value for estimate in expected.values()))
            unknown = [kind for kind, estimate in expected.items() if not estimate.is_known]
            if drop == 0 and unknown:
                raise UserError(
                    "it can't be told how many annotations are wrong, so that --drop-expected has "
                    "no number to drop; say how many with --drop-share."
                )
            if unknown:
                kinds = [kind for kind in KINDS if kind not in unknown]
                names = " and ".join(f"'{kind}'" for kind in unknown)
                print(f"None is dropped for {names}, of which it can't be told how many there are.")
        text = weighted_json(annotations, content, drop=drop, kinds=kinds)
    if args.overwrite:
        write_text(args.write, text)
    else:
        was_there = os.path.exists(args.write)
        write_new({args.write: text})
        if was_there:
            print(f"{args.write} is there already, just as it would be written: it is kept.")
    print(f"{args.write}: the annotations to train on, with --register-coco.")


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("auditing"):
        check_args(args)
        register_own(args)
        weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
        load = load_config if args.before_training else load_run_config
        cfg = load(args.run, weights)
        folder = args.output or Path(cfg.OUTPUT_DIR)
        files = [folder / name for name in _NAMES]
        written = [] if args.write is None else [args.write]
        annotations = training_annotations(cfg, args.dataset, before_training=args.before_training)
        check_outputs(annotations.file, [*files, *written])

        start = "" if args.before_training else start_weights(args.run)
        options = {"quick": bool(args.quick), "before_training": args.before_training}
        now = made_of(cfg, annotations, start, **options)
        asked = {key: now[key] for key in now if key != "quick" or args.quick is not None}
        content = None if args.overwrite else find_audit(files, annotations, asked)
        decisions = read_decisions(files[1], is_used=content is not None)
        if content is None:
            check_no_decisions(files[1], decisions)
            check_files([*files, *written], args.overwrite)
            if args.write is not None:
                check_written_here(args.write)
            with alone_in(folder):
                audit = judge(args, cfg, annotations, start)
                name = Path(folder_of_run(args.run) or args.run).resolve().name
                texts = {
                    files[1]: to_csv(audit),
                    files[0]: to_json(audit, run=name, made_of=now),
                }
                # It took long; somebody may have decided meanwhile.
                check_no_decisions(files[1], read_decisions(files[1], is_used=False))
                files[2].unlink(missing_ok=True)  # no page of another audit
                write_together(texts)
                write_page(audit, files[2], name=name)  # last, for it reads pictures again
            content = read_json(files[0])
        else:
            print(
                f"{files[0]} is an audit of the same annotations, weights and options: taken as "
                "it is."
            )
        print_expected(content, len(annotations.ids))
        if decisions:
            print(f"Decisions about its list, in {files[1]}: {len(decisions):,}.")
            content = decided(content, decisions)
        if args.write is not None:
            write_annotations(args, annotations, content)
    if files[2].exists():
        print(f"{files[2]}: open it in a browser.")
    else:
        print(f"{files[2]} is not there; --overwrite makes it, and the audit, anew.")


if __name__ == "__main__":
    main()
