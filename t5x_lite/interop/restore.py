"""Opens what a model can start from, and starts one from it."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t5x_lite import checkpoints
from t5x_lite.errors import UserError, nearest
from t5x_lite.interop import hugging_face, t5x
from t5x_lite.interop.run import RunSource
from t5x_lite.interop.source import Source
from t5x_lite.model import T5Config, abstract_params, logical_axes
from t5x_lite.model.names import named
from t5x_lite.partitioning import Partitioner, with_shardings
from t5x_lite.run_folder import MANIFEST

Rules = Sequence[tuple[str, str | None]]


def open_source(path: epath.PathLike, what: str = "INITIAL_CHECKPOINT_PATH") -> Source:
    """The weights that a path or name means; no array is read yet.

    A run folder of ours (its latest step) or one step of it, RUN/checkpoints/N; a checkpoint folder of T5X, or the
    folder with several of them (the latest); a Hugging Face folder; else a name on the Hugging Face hub, looked up in
    its cache first. Raises UserError, which names `what` the user has set, where it is none of these.
    """
    given = epath.Path(path)
    if given.is_file() and given.name != t5x.STATE_FILE:
        raise UserError(f"{what} {str(path)!r} is a file; give the folder that it is in")
    if (given / "config.json").exists() and not (given / MANIFEST).exists():
        return hugging_face.HuggingFaceSource(given)
    if found := t5x.find_checkpoint(given):
        return t5x.T5XSource(found)
    if not given.exists() and _is_hub_name(str(path)):
        return hugging_face.HuggingFaceSource(hugging_face.find_folder(str(path), what))
    return RunSource(given, open_base=open_base)


def open_step(model_dir: epath.PathLike, step: int) -> Source:
    """One step of a run folder."""
    return open_source(epath.Path(model_dir) / "checkpoints" / str(step), "--model_dir")


def load_model(source: Source, config: T5Config, partitioner: Partitioner) -> Any:
    """All parameters of a model from a source, each where the partitioner wants it."""
    shapes = abstract_params(config)
    return restore_partial(with_shardings(shapes, partitioner.shardings(logical_axes(config), shapes)), source)


def _is_hub_name(path: str) -> bool:
    """OWNER/NAME or NAME; where a folder OWNER is here, NAME is mistyped and deserves the nearest one in it."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) is not None and (
        "/" not in path or not epath.Path(path).parent.exists()
    )


def open_base(base: Mapping[str, Any]) -> Source:
    """The weights that a run started from and did not train, as its manifest's `base` names them.

    Raises UserError where they are not there any more, or are not the same ones.
    """
    source = open_source(base["path"], "the base model of this run,")
    found = fingerprint(source)
    if found != base["fingerprint"]:
        raise UserError(
            f"the base model of this run, {base['path']!r}, has changed: its norms have sha256 {found[:12]}, and had "
            f"{base['fingerprint'][:12]} when the run began; put the old one back"
        )
    return source


def fingerprint(source: Source) -> str:
    """sha256 of the two final norms, as float32: a few kilobytes that any full training of a model changes."""
    names = ("encoder/encoder_norm/scale", "decoder/decoder_norm/scale")
    shapes = source.parameters(scanned=source.config.scan_layers)
    leaves = {name: jax.ShapeDtypeStruct(shapes[name].shape, jnp.float32) for name in names}
    loaded = source.load({name: (name, checkpoints.placed(leaf)) for name, leaf in leaves.items()})
    return hashlib.sha256(b"".join(np.asarray(loaded[name]).tobytes() for name in names)).hexdigest()


def restore_partial(initial_params: Any, source: Source, assignment_map: Rules | None = None) -> Any:
    """Starts a model from a source's weights, renamed by rules as T5X's `assignment_map` has them.

    A parameter's name, such as 'encoder/layers_0/mlp/wo/kernel', goes to the first rule (regex, replacement) whose
    regex matches all of it: it is read from the expanded replacement, or, where that is None, its leaf of
    `initial_params` is returned as it came. A name that no rule matches is read from the same name; what else the
    source has stays there. Leaves of `initial_params` are arrays or jax.ShapeDtypeStruct; dtypes and shardings are
    theirs.

    Raises UserError for a rule that matches nothing, a parameter that the source has not, and a shape that differs.
    """
    wanted = named(initial_params)
    saved = source.parameters(scanned=any("/layers/" in name for name in wanted))
    needed = {}
    for name, old in assign(wanted, assignment_map or ()).items():
        if old is None:
            continue
        if old not in saved:
            renamed = "" if old == name else f" (for {name!r})"
            raise UserError(
                f"{source.where}: no parameter {old!r}{renamed} in this checkpoint{nearest(old, saved)}; "
                "to start it fresh, map it to None in assignment_map"
            )
        checkpoints.check_shape(source.where, name, saved[old], wanted[name])
        needed[name] = (old, checkpoints.placed(wanted[name]))
    loaded = source.load(needed)
    return jax.tree.unflatten(
        jax.tree.structure(initial_params), [loaded.get(name, leaf) for name, leaf in wanted.items()]
    )


def assign(names: Mapping[str, Any], rules: Rules) -> dict[str, str | None]:
    """For each name of this model the name to read, or None to keep what the model starts with."""
    try:
        patterns = [(re.compile(pattern), replacement) for pattern, replacement in rules]
        used, origin = set(), {}
        for name in names:
            origin[name] = name
            for pattern, replacement in patterns:
                if match := pattern.fullmatch(name):
                    used.add(pattern)
                    origin[name] = None if replacement is None else match.expand(replacement)
                    break
    except (re.error, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"assignment_map: {error}; it is a list of (regex, replacement or None), like "
            "[('decoder/(.*)', r'encoder/\\1'), ('.*logits_dense.*', None)]"
        ) from None
    for pattern, _ in patterns:
        if pattern not in used:
            raise UserError(
                f"assignment_map: {pattern.pattern!r} takes no parameter{nearest(pattern.pattern, names)}; "
                "a regex must match a whole name of this model that no earlier rule took"
            )
    return origin
