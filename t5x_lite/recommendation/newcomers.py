"""Embeddings of items that came after training, for a model with one token an item."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite.interop.growth import TABLES
from t5x_lite.model.names import named, nested
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.codes import differences_by_features, unit


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
