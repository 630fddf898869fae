"""Checkpoints that a crash cannot spoil: complete under their name, or not there.

A checkpoint is written beside its place, every file and directory brought to disk, ``manifest.json`` with the
sha256 of each file last; only then is it renamed to ``step-000200``. Reading believes nothing but the manifest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from training.durable_files import sha256, to_disk
from training.errors import CheckpointError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")


def path_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:06d}"


def steps(checkpoints: Path) -> list[int]:
    """Steps that have a checkpoint, whole or damaged, ascending."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(found[1]) for entry in checkpoints.iterdir() if (found := _NAME.fullmatch(entry.name)))


def write(checkpoints: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Make the checkpoint of ``step``; ``fill`` puts the files into the directory it is given.

    Raises:
        CheckpointError: The disk is full or does not take it. What was there before is untouched.
    """
    final = path_of(checkpoints, step)
    partial = checkpoints / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        digests = {name: {"sha256": sha256(partial / name)} for name in _files_below(partial)}
        for name in digests:
            to_disk(partial / name)
        (partial / MANIFEST).write_text(json.dumps({"step": step, "files": digests}, indent=1) + "\n", encoding="utf-8")
        to_disk(partial / MANIFEST)
        _put(partial, final)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        shutil.rmtree(partial, ignore_errors=True)
        kept = ", ".join(path_of(checkpoints, each).name for each in steps(checkpoints)) or "none"
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {checkpoints}: {error}; earlier ones are intact "
            f"({kept}): make room and start the same command again"
        ) from error
    return final


def problem(checkpoint: Path) -> str | None:
    """Why it cannot be used; None where it can."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
        for name, digest in files.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if sha256(checkpoint / name) != digest["sha256"]:
                return f"{name} was truncated or altered"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    return None


def newest_valid(checkpoints: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest usable checkpoint, and what is wrong with those newer than it, by name."""
    damaged: dict[str, str] = {}
    for step in reversed(steps(checkpoints)):
        checkpoint = path_of(checkpoints, step)
        reason = problem(checkpoint)
        if reason is None:
            return checkpoint, damaged
        damaged[checkpoint.name] = reason
    return None, damaged


def prune(checkpoints: Path, keep: int, also: int | None) -> None:
    """Delete all but the newest ``keep`` and that of step ``also``, and what crashes left half-made."""
    if not checkpoints.is_dir():
        return
    for step in steps(checkpoints)[:-keep]:
        if step != also:
            # Renamed first: a crash while deleting must not leave a damaged checkpoint under its name.
            doomed = checkpoints / f".step-{step:06d}.deleted"
            path_of(checkpoints, step).rename(doomed)
            shutil.rmtree(doomed)
    for entry in checkpoints.iterdir():
        if entry.name.startswith(".step-"):
            shutil.rmtree(entry)


def publish(model: Path, best: Path) -> None:
    """Copy the model of a checkpoint to ``best``, in place of the one that is there.

    Raises:
        CheckpointError: The disk is full or does not take it.
    """
    partial = best.parent / f".{best.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial)
        for name in _files_below(partial):
            to_disk(partial / name)
        _put(partial, best)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{best} could not be written: {error}; the checkpoint it is a copy of is intact: make room and start "
            "the same command again"
        ) from error


def same_weights(model: Path, best: Path) -> bool:
    """Whether ``best`` holds the weights of that model. Its settings may have been fitted since."""
    weights = sorted(path.name for path in model.glob("*.safetensors"))
    return bool(weights) and all(
        (best / name).is_file() and sha256(best / name) == sha256(model / name) for name in weights
    )


def write_text(path: Path, text: str) -> None:
    """Replace a small file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    to_disk(partial)
    partial.replace(path)
    to_disk(path.parent)


def _put(partial: Path, final: Path) -> None:
    """Rename a finished directory to its name; one of the same name goes first, since rename replaces files only."""
    for folder, _, _ in os.walk(partial, topdown=False):
        to_disk(Path(folder))
    old = final.with_name(f".{final.name}.deleted")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _files_below(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix()
