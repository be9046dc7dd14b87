"""Our own run folders as a source; a run that trained a part of a model is put together with its base again."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from t5x_lite import checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop.source import Source, Wanted, layer_names, stacked_name
from t5x_lite.model import Lora, T5Config
from t5x_lite.model.lora import FACTORS, is_adapter, merge_adapter
from t5x_lite.run_folder import MANIFEST, read_manifest

_merge = jax.jit(merge_adapter, static_argnums=3)


class RunSource(Source):
    """One step of a run folder.

    A run that trained only some parameters has saved only those: the others come from `open_base(manifest["base"])`,
    and low-rank adapters are folded into their kernels.
    """

    def __init__(self, path: epath.PathLike, open_base: Callable[[dict[str, Any]], Source]):
        self._step = checkpoints.find_checkpoint(path)
        self.where = str(self._step)
        self._folder = self._step.parent.parent
        self._saved = checkpoints.saved_parameters(self._step)
        # A bare folder of checkpoints has no manifest: it can be started from, and says nothing of itself.
        self._manifest = read_manifest(self._folder) if (self._folder / MANIFEST).exists() else {}
        self.hugging_face = self._manifest.get("hugging_face", {})
        base = self._manifest.get("base")
        try:
            self._base = open_base(base) if base else None
        except UserError as error:
            raise UserError(
                f"{self.where} holds a part of a model, and the rest cannot be read: {error} "
                f"(its place is base.path in {self._folder / MANIFEST})"
            ) from None

    @functools.cached_property
    def config(self) -> T5Config:
        model = read_manifest(self._folder)["model"]
        return dataclasses.replace(T5Config(**model), lora=None)

    def vocabulary(self) -> vocabularies.Vocabulary:
        return vocabularies.load(self._folder / "vocabulary")

    @property
    def lengths(self) -> dict[str, int]:
        return read_manifest(self._folder)["lengths"]

    @property
    def dtype(self) -> str:
        if self._base:
            return self._base.dtype
        return str(self._saved["token_embedder/embedding"].dtype)

    def parameters(self, *, scanned: bool) -> dict[str, jax.ShapeDtypeStruct]:
        own = {name: leaf for name, leaf in self._own(scanned=scanned).items() if not is_adapter(name)}
        return (self._base.parameters(scanned=scanned) if self._base else {}) | own

    def load(self, wanted: Wanted) -> dict[str, Array]:
        scanned = any("/layers/" in name for name, _ in wanted.values())
        own = self._own(scanned=scanned)
        adapted = {
            target: [name.replace("/kernel", f"/{factor}") for factor in FACTORS]
            for target, (name, _) in wanted.items()
            if name.endswith("/kernel") and name.replace("/kernel", f"/{FACTORS[0]}") in own
        }
        read = dict(wanted)
        for target in adapted:  # in float32, so that a kernel and its adapter are rounded once
            name, leaf = wanted[target]
            read[target] = (name, jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding))
        loaded = self._load_own({target: pair for target, pair in read.items() if pair[0] in own})
        if self._base:
            loaded |= self._base.load({target: pair for target, pair in read.items() if pair[0] not in own})
        for target, (name, leaf) in read.items():
            if name in self._some_layers:
                loaded[target] = self._stack(name, leaf, loaded[target])
        for target, factors in adapted.items():
            leaf = wanted[target][1]
            like = [_like(leaf, own[factor], lambda spec: ()) for factor in factors]
            a, b = self._load_own(dict(enumerate(zip(factors, like, strict=True)))).values()
            merged = _merge(loaded[target], a, b, self._lora).astype(leaf.dtype)
            loaded[target] = jax.device_put(merged, leaf.sharding)
        return loaded

    @property
    def _lora(self) -> Lora:
        return Lora(**self._manifest["model"]["lora"])

    @functools.cached_property
    def _some_layers(self) -> dict[str, list[str]]:
        """{stack: the layers of it that this run saved}, for the stacks of which the base has more."""
        whole = self._base.parameters(scanned=True) if self._base else {}
        return {
            name: group
            for name, group in layer_names(list(self._saved)).items()
            if group != [name] and name in whole and len(group) < whole[name].shape[0]
        }

    def _own(self, *, scanned: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """What this run saved, under the names of the layout asked for; a stack only where it saved all its layers."""
        if scanned:
            return {
                name: self._saved[group[0]]
                if group == [name]
                else jax.ShapeDtypeStruct((len(group), *self._saved[group[0]].shape), self._saved[group[0]].dtype)
                for name, group in layer_names(list(self._saved)).items()
                if name not in self._some_layers
            }
        return {
            name.replace("/layers/", f"/layers_{n}/"): leaf
            if n is None
            else jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
            for name, leaf in self._saved.items()
            for n in (range(leaf.shape[0]) if "/layers/" in name else [None])
        }

    def _load_own(self, wanted: Wanted) -> dict[str, Array]:
        """Reads what is saved as it is wanted at once; stacks and layers of the other layout one by one."""
        loaded = checkpoints.load_parameters(
            self._step, {t: pair for t, pair in wanted.items() if pair[0] in self._saved}
        )
        stacks: dict[str, dict[str, tuple[str, Any]]] = {}
        for target, (name, leaf) in wanted.items():
            if target in loaded:
                continue
            if "/layers/" in name:
                loaded[target] = self._stack(name, leaf)
            else:
                stacks.setdefault(stacked_name(name), {})[target] = (name, leaf)
        for name, layers in stacks.items():
            loaded |= self._layers_of(name, layers)
        return loaded

    def _stack(self, name: str, leaf: jax.ShapeDtypeStruct, base: Array | None = None) -> Array:
        """The layers that this run saved as one array; put into the base's where it did not save them all."""
        names = layer_names(list(self._saved))[name]
        layer = _like(leaf, self._saved[names[0]], lambda spec: spec[1:], leaf.dtype)
        parts = checkpoints.load_parameters(self._step, {layer_name: (layer_name, layer) for layer_name in names})
        places = jnp.array([_layer_number(layer_name) for layer_name in names])

        def stack(parts: list[Array], base: Array | None) -> Array:
            return jnp.stack(parts) if base is None else base.at[places].set(jnp.stack(parts))

        return jax.jit(stack, out_shardings=leaf.sharding)([parts[layer_name] for layer_name in names], base)

    def _layers_of(self, stack: str, wanted: Wanted) -> dict[str, Array]:
        first = next(iter(wanted.values()))[1]
        whole = _like(first, self._saved[stack], lambda spec: (None, *spec), first.dtype)
        values = checkpoints.load_parameters(self._step, {stack: (stack, whole)})[stack]
        return {
            target: jax.device_put(values[_layer_number(name)], leaf.sharding)
            for target, (name, leaf) in wanted.items()
        }


def _layer_number(name: str) -> int:
    return int(name.split("/layers_")[1].split("/")[0])


def _like(
    leaf: jax.ShapeDtypeStruct, saved: jax.ShapeDtypeStruct, respec: Callable[[tuple], tuple], dtype: Any = None
) -> jax.ShapeDtypeStruct:
    """What is saved, on the devices of `leaf` and laid out by what `respec` makes of its layout."""
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*respec(tuple(sharding.spec))))
    return jax.ShapeDtypeStruct(saved.shape, dtype or saved.dtype, sharding=sharding)
