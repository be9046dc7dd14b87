"""The manifest of a run folder: which model, vocabulary and tasks its checkpoints belong to."""

import dataclasses
import json
import os
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax
from etils import epath

from t5x_lite.errors import UserError, nearest

FORMAT = 1
MANIFEST = "manifest.json"
_BEFORE_MANIFEST = ("vocabulary", "items", "config.gin", "config.json")

# A run may go on with these changed: they say how, where or by whom it is computed, not what its arrays mean.
_MAY_CHANGE = {
    "versions",
    "git",
    "hardware",
    "hugging_face",
    "best_metric",
    "base.path",
    "model.dtype",
    "model.remat",
    "model.dropout_rate",
}


def comes_before_manifest(name: str) -> bool:
    """Whether it may stand in the folder of a run that was killed before it had a manifest."""
    return name in _BEFORE_MANIFEST or name.endswith(".tmp")


def describe_model(model: Any, vocabulary: Any, lengths: dict[str, int]) -> dict[str, Any]:
    """What the manifest of every run folder says: a T5Config, its Vocabulary, lengths in tokens, and who wrote it."""
    return {
        "format": FORMAT,
        "model": dataclasses.asdict(model),
        "lengths": dict(lengths),
        "vocabulary": {"kind": vocabulary.kind, "sha256": vocabulary.sha256, "size": vocabulary.size},
        "versions": versions(),
        "git": _git_revision(),
        "hardware": f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
    }


def versions() -> dict[str, str]:
    packages = ("t5x_lite", "jax", "flax", "optax", "orbax-checkpoint", "seqio")
    installed = {name: _version(name) for name in packages}
    return {"python": platform.python_version()} | {name: found for name, found in installed.items() if found}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a machine that only answers needs no seqio
        return None


def _git_revision() -> str | None:
    """The commit of the code that runs, where it runs from a checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def write_manifest(run_dir: epath.PathLike, manifest: dict[str, Any]) -> None:
    """Writes manifest.json whole or not at all; makes the folder. One process of a run calls this."""
    folder = epath.Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{MANIFEST}.tmp"
    unfinished.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    unfinished.replace(folder / MANIFEST)


def read_manifest(run_dir: epath.PathLike) -> dict[str, Any]:
    """Reads manifest.json. Raises UserError where there is none, or none that this version can read."""
    path = epath.Path(run_dir) / MANIFEST
    if not path.exists():
        raise UserError(f"{str(run_dir)!r} is not a run folder (no {MANIFEST} in it){nearest_folder(path.parent)}")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error!r}); restore it from a copy of the run") from None
    if version != FORMAT:
        raise UserError(f"{str(path)!r} has format {version}; this version of t5x_lite reads format {FORMAT}")
    return manifest


def check_manifest(run_dir: epath.PathLike, wanted: dict[str, Any]) -> None:
    """Refuses (UserError) a folder whose checkpoints were made by another model, vocabulary or set of tasks.

    The message names the first field that differs and both values. Fields that only one side has count as
    differing; versions, the git revision, the metric of the best step and the ways of computing do not count.
    """
    found = _flatten(read_manifest(run_dir))
    # Through JSON, so that a tuple asked for equals the list that was read.
    asked = _flatten(json.loads(json.dumps(wanted)))
    for field in [*asked, *(field for field in found if field not in asked)]:
        if field in _MAY_CHANGE or field.split(".")[0] in _MAY_CHANGE:
            continue
        theirs, ours = found.get(field), asked.get(field)
        if theirs != ours:
            raise UserError(
                f"MODEL_DIR {str(run_dir)!r} holds another run: {field} is {theirs!r} there and {ours!r} in "
                "this configuration; set --gin.MODEL_DIR to a new folder, or go back to the run's own setting"
            )


def _flatten(manifest: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"d_ff": 8}} -> {"model.d_ff": 8}, in the manifest's order."""
    flat = {}
    for key, value in manifest.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_folder_of(flag: str, path: str) -> None:
    """Raises UserError, with the nearest, where the folder that a file is to be written to is not there."""
    folder = epath.Path(path).parent
    if not folder.is_dir():
        raise UserError(f"{flag}: no folder {str(folder)!r}{nearest_folder(folder)}")


def nearest_folder(folder: epath.Path) -> str:
    """Names the closest folders beside one that is not there; '' where it is there."""
    if folder.exists() or not folder.parent.exists():
        return ""
    return nearest(folder.name, [sibling.name for sibling in folder.parent.iterdir()])
