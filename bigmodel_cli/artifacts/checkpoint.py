"""Checkpoints: `step-00000500/` with model.safetensors, optimizer.safetensors, state.json.

Written under a temporary name; each file is synced, state.json last with the others' sizes and
hashes, then the folder is renamed. A reader verifies before it loads. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bigmodel_cli.artifacts.manifest import (
    TEMPORARY,
    check_file,
    file_info,
    read_record,
    storage,
    sync_folder,
    write_record,
)
from bigmodel_cli.artifacts.records import MODEL as MODEL
from bigmodel_cli.artifacts.records import BestRecord, CheckpointState
from bigmodel_cli.errors import ArtifactError, FormatError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
BEST = "best.json"
HINT = "choose another with --checkpoint, or train again: bigmodel train --restart"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file durably, readable as the umask allows."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with storage(path):
        try:
            save_file(
                {k: v.detach().contiguous().cpu() for k, v in tensors.items()},
                path,
                metadata={"format": "pt"},
            )
        except SafetensorError as error:  # it wraps the operating system's error in words
            found = re.search(r"os error (\d+)|code: (\d+)", str(error))
            if found:
                number = int(found.group(1) or found.group(2))
                raise OSError(number, os.strerror(number)) from error
            raise
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def save(
    folder: Path,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: CheckpointState,
) -> Path:
    """Writes one checkpoint, all of it or nothing, and gives its folder. state: but for its
    files."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f"{TEMPORARY}{final.name}-{uuid.uuid4().hex[:8]}"
    with storage(final):
        temporary.mkdir(parents=True)
        try:
            save_tensors(temporary / MODEL, model)
            save_tensors(temporary / OPTIMIZER, optimizer)
            files = {name: file_info(temporary / name) for name in (MODEL, OPTIMIZER)}
            write_record(temporary / STATE, replace(state, files=files))
            if final.exists():  # a damaged one of the same step, trained again
                shutil.rmtree(final)
            temporary.rename(final)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def amend(path: Path, state: CheckpointState) -> None:
    """Writes a checkpoint's state again; its tensors stay as they are."""
    write_record(path / STATE, replace(state, files=read_state(path).files))


def names(folder: Path) -> list[str]:
    """The checkpoints' names, oldest first; what was never finished is not among them."""
    return sorted(
        path.parent.name
        for path in folder.glob(f"step-*/{STATE}")
        if re.fullmatch(r"step-\d{8,}", path.parent.name)
    )


def read_state(path: Path) -> CheckpointState:
    """A checkpoint's state.json. Raises ArtifactError."""
    state = read_record(path / STATE, CheckpointState, "checkpoint", HINT)
    if MODEL not in state.files:
        raise ArtifactError(f"the checkpoint `{path}` lacks `{MODEL}` in its state", HINT)
    if path.name != f"step-{state.step:08d}":
        raise ArtifactError(f"the checkpoint `{path}` is corrupt: `step` is {state.step:,}", HINT)
    return state


def verify(path: Path, *files: str) -> CheckpointState:
    """Checks a checkpoint's files (all, or those named) against state.json, and gives that."""
    state = read_state(path)
    try:
        for name in files or (MODEL, OPTIMIZER):
            check_file(path / name, state.files[name], "checkpoint", HINT)
    except KeyError as error:
        raise ArtifactError(f"the checkpoint `{path}` lacks {error} in its state", HINT) from None
    return state


def newest(folder: Path, warn: Callable[[str], None]) -> tuple[Path, CheckpointState] | None:
    """The newest checkpoint that verifies; a damaged one is named, and the one before is taken."""
    found = names(folder)
    for name in reversed(found):
        try:
            state = verify(folder / name)
            for damaged in found[found.index(name) + 1 :]:  # the run will come by there again
                _remove(folder / damaged)
            return folder / name, state
        except FormatError:
            raise
        except ArtifactError as error:
            warn(f"{error.message}; falling back to the checkpoint before")
    if found:
        raise ArtifactError(f"no checkpoint in `{folder}` is whole", "bigmodel train --restart")
    return None


def find(folder: Path, which: str) -> tuple[Path, CheckpointState]:
    """The checkpoint that `best`, `last` or `step-N` means, its model verified.

    Raises UsageError for a name that is none of these, ArtifactError for one that is not there.
    """
    found = names(folder)
    if not found:
        raise ArtifactError(f"there is no checkpoint in `{folder}`", "train first: bigmodel train")
    if which == "best":
        name = read_best(folder).name
    elif which == "last":
        name = found[-1]
    elif re.fullmatch(r"(step-)?\d+", which):
        name = f"step-{int(which.removeprefix('step-')):08d}"
    else:
        raise UsageError(f"--checkpoint is `{which}`", "use best, last or step-N")
    if name not in found:
        raise ArtifactError(f"there is no checkpoint `{name}`", "there are: " + ", ".join(found))
    return folder / name, verify(folder / name, MODEL)


def read_best(folder: Path) -> BestRecord:
    """Which checkpoint is the best. Raises ArtifactError."""
    return read_record(folder / BEST, BestRecord, "record of the best checkpoint", HINT)


def mark_best(folder: Path, name: str, value: float | None) -> None:
    """Records which checkpoint has the best headline metric on the validation split so far."""
    write_record(folder / BEST, BestRecord(name=name, validation=value))


def prune(folder: Path, keep: int, best: str) -> None:
    """Removes all but the best and the newest `keep`. Called after a new one is safe: then one that
    was made only because of a signal goes, too, and what stays is what an undisturbed run keeps."""
    *others, _ = found = names(folder)
    extra = [name for name in others if _interim(folder / name)]
    kept = [name for name in found if name not in extra]
    for name in [*extra, *kept[:-keep]]:
        if name != best:
            _remove(folder / name)
    for path in folder.glob("step-*"):
        if not (path / STATE).exists():
            shutil.rmtree(path, ignore_errors=True)


def _interim(path: Path) -> bool:
    try:
        return read_state(path).interim
    except ArtifactError:
        return False  # what is damaged is named when it is read to go on


def _remove(path: Path) -> None:
    """First what makes it a checkpoint, so that a kill leaves no half one."""
    (path / STATE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are."""
    import torch

    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def load_tensors(path: Path, what: str = "checkpoint", hint: str = HINT) -> dict[str, Tensor]:
    """Reads a safetensors file into memory. Raises ArtifactError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bigmodel_cli.artifacts.shards import read_header

    read_header(path, what, hint)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"the {what} `{path}` is corrupt: {error}", hint) from None
