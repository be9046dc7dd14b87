"""T5 in JAX and Flax NNX; knows nothing of data, training or files."""

from t5x_lite.model.axes import axis_rules, constrain, logical_to_spec
from t5x_lite.model.config import Lora, T5Config
from t5x_lite.model.network import (
    abstract_params,
    bind,
    describe_model,
    init_params,
    logical_axes,
    stack_layers,
    unstack_layers,
)
from t5x_lite.model.t5 import T5, Cache

__all__ = [
    "T5",
    "Cache",
    "Lora",
    "T5Config",
    "abstract_params",
    "axis_rules",
    "bind",
    "constrain",
    "describe_model",
    "init_params",
    "logical_axes",
    "logical_to_spec",
    "stack_layers",
    "unstack_layers",
]
