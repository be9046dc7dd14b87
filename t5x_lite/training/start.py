"""Where a run's first state comes from."""

import jax
from jaxtyping import Array, Key

from t5x_lite import interop
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data.pipeline import TrainIterator
from t5x_lite.model import init_params
from t5x_lite.model.names import named, nested
from t5x_lite.training.run import Run
from t5x_lite.training.state import Params, TrainState, abstract_frozen, init_state, state_of
from t5x_lite.training.trainable import join, split


def initial_state(
    run: Run, abstract: TrainState, checkpoints: Checkpoints, iterator: TrainIterator
) -> tuple[TrainState, Params, str]:
    """The state to begin with, the parameters that are not trained, and a line that says why.

    The order is the contract:

    1. The run's own latest checkpoint, with its optimizer and its place in the data.
    2. The parameters of INITIAL_CHECKPOINT_PATH, at step 0 with a new optimizer.
    3. Random parameters.
    """
    config = run.config
    frozen = abstract_frozen(run.model, config.partitioner, run.trainable)
    if checkpoints.latest_step() is not None:
        state, data_state = checkpoints.restore(abstract)
        iterator.restore(data_state)
        if frozen:
            frozen = interop.restore_partial(frozen, run.source)
        return state, frozen, f"state: resuming {config.model_dir} at step {int(state.step)}"
    with config.partitioner.context():
        key = jax.random.key(config.seed)
        if run.source is None:
            state = init_state(run.model, config.optimizer, key, config.partitioner)
            return state, {}, f"state: random parameters from seed {config.seed}, step 0"
        params_key, dropout_key = jax.random.split(key)
        params = _start_params(run, join(abstract.params, frozen), params_key)
        trained, frozen = split(params, run.trainable)
        state = state_of(trained, config.optimizer, dropout_key, abstract)
    return state, frozen, f"state: parameters from {config.initial_checkpoint_path}, step 0"


def _start_params(run: Run, abstract: Params, key: Key[Array, ""]) -> Params:
    """The source's parameters, each in its sharding; random ones only where the source is not to be read."""
    params = named(interop.restore_partial(abstract, run.source, run.assignment_map))
    missing = {name: leaf.sharding for name, leaf in params.items() if isinstance(leaf, jax.ShapeDtypeStruct)}

    def draw(key: Key[Array, ""]) -> dict[str, Array]:
        drawn = named(init_params(run.model, key))
        return {name: drawn[name] for name in missing}

    return nested(params | (jax.jit(draw, out_shardings=missing)(key) if missing else {}))
