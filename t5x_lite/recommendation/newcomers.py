"""Items that came after training: their place in the catalogue, and their embeddings where each has a token."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite.interop.growth import TABLES
from t5x_lite.model.names import named, nested
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.codes import differences_by_features, unit


def updated(known: Catalogue, given: Catalogue) -> Catalogue:
    """The known items in their order, with the titles and attributes of `given` where it has them, then its new ones.

    Of attributes that only one of the two has, the other's items keep what they have or have none.
    """
    ids = tuple(dict.fromkeys((*known.ids, *given.ids)))

    def column(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple:
        return tuple(new.get(id, old.get(id, ())) for id in ids)

    def by_id(catalogue: Catalogue, values: Sequence[Any] | None) -> dict[str, Any]:
        return {} if values is None else dict(zip(catalogue.ids, values, strict=True))

    attributes = {
        name: column(by_id(given, given.attributes.get(name)), by_id(known, known.attributes.get(name)))
        for name in dict.fromkeys((*known.attributes, *given.attributes))
    }
    return Catalogue(ids, column(by_id(given, given.titles), by_id(known, known.titles)), attributes)


def with_rows_of_new_items(
    params: Mapping[str, Any], sequences: Sequence[Sequence[int]], known: int, catalogue: Catalogue
) -> dict[str, Any]:
    """The parameters, in which new items' tokens stand for the mean of the items that share their words and attributes.

    `sequences` are each item's tokens, one an item; the first `known` of them are trained.
    """
    if len(sequences) == known:
        return dict(params)
    rows = np.array([token for (token,) in sequences])
    flat = named(params)
    for name, axis in TABLES.items():
        if name in flat:
            flat[name] = _filled(flat[name], rows, known, catalogue, axis)
    return nested(flat)


def _filled(table: Any, rows: np.ndarray, known: int, catalogue: Catalogue, axis: int) -> Any:
    values = np.moveaxis(np.array(table, np.float32), axis, 0)
    trained = values[rows[:known]]
    center = trained.mean(axis=0)
    directions = unit(differences_by_features(trained, np.arange(len(rows)) < known, catalogue)[known:])
    usual = np.median(np.linalg.norm(trained - center, axis=1))
    values[rows[known:]] = center + usual * directions
    return jax.device_put(np.moveaxis(values, 0, axis).astype(table.dtype), getattr(table, "sharding", None))
