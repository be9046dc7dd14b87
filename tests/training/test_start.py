"""Where a run's first state comes from, and what is refused before anything is written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import partitioning
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.registry import register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.errors import UserError
from t5x_lite.interop import convert, hugging_face, open_source
from t5x_lite.model import Lora, abstract_params
from t5x_lite.model.lora import is_adapter
from t5x_lite.model.names import named, nested
from t5x_lite.run_folder import write_manifest
from t5x_lite.training.optimizers import adamw
from t5x_lite.training.run import TrainConfig, prepare
from t5x_lite.training.start import initial_state
from t5x_lite.training.state import abstract_state, state_of
from tests.interop.test_run import BASE, LORA, assert_same_bits, one_line, random_params, write_run
from tests.training.test_step import RATE

ROWS = [{"a": a, "b": a + 1} for a in range(4)]
register_task(
    "counting_of_start",
    Rows({"train": ROWS, "validation": ROWS}),
    [InstructionTemplate("after", "after {a}?", "{b}")],
    metrics=[exact_match],
)
DECODER_ONLY = [("decoder/.*", True), (".*", False)]
FSDP = partitioning.make_partitioner({"data": 1, "fsdp": 8}, [("batch", ("data", "fsdp")), ("embed", "fsdp")])
WEIGHTS = random_params(BASE)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run folder with WEIGHTS."""
    return write_run(tmp_path_factory.mktemp("base"), BASE, WEIGHTS)


@pytest.fixture
def config(base, tmp_path):
    """A run that starts from `base`."""
    return TrainConfig(
        model_dir=str(tmp_path / "run"),
        mixture_or_task_name="counting_of_start",
        task_feature_lengths={"inputs": 48, "targets": 12},
        train_steps=4,
        batch_size=8,
        model=dataclasses.replace(BASE, vocab_size=0),
        partitioner=FSDP,
        optimizer=adamw(RATE),
        learning_rate=RATE,
        vocabulary="bytes",
        initial_checkpoint_path=str(base),
        seed=3,
    )


class Place:
    """The data iterator, as far as a start uses it."""

    restored = None

    def restore(self, data_state):
        self.restored = data_state


def abstract(run):
    return abstract_state(run.model, run.config.optimizer, run.config.partitioner, run.trainable)


def start(run):
    """(state, what is not trained by name, the line that says why, what the iterator was given)."""
    place = Place()
    state, frozen, line = initial_state(run, abstract(run), Checkpoints(run.config.model_dir), place)
    return state, named(frozen), line, place.restored


def folder_of(run):
    """Writes what makes the run's folder one to resume."""
    run.vocabulary.save(f"{run.config.model_dir}/vocabulary")
    write_manifest(run.config.model_dir, run.manifest())


def save(run, params, step):
    """A checkpoint of the run, with these weights."""
    placed = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), nested(params), abstract(run).params)
    state = state_of(placed, run.config.optimizer, jax.random.key(9), abstract(run))
    checkpoints = Checkpoints(run.config.model_dir)
    checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)), {"row": 5})
    checkpoints.close()


def quick_params(config, key):
    """One random number a parameter, all over it: real draws compile for ten seconds."""
    shapes = named(abstract_params(config))
    numbers = dict(zip(shapes, jax.random.normal(key, (len(shapes),)), strict=True))
    return nested({name: jnp.full(leaf.shape, numbers[name], leaf.dtype) for name, leaf in shapes.items()})


@pytest.fixture(autouse=True)
def quick_draws(monkeypatch):
    for module in ("start", "state"):
        monkeypatch.setattr(f"t5x_lite.training.{module}.init_params", quick_params)


def drawn(run):
    """The random weights that the run's seed means."""
    key, _ = jax.random.split(jax.random.key(run.config.seed))
    return named(quick_params(run.model, key))


# ---------------------------------------------------------------------- the order


def test_without_a_source_parameters_are_random(config):
    run = prepare(dataclasses.replace(config, initial_checkpoint_path=None))
    state, frozen, line, _ = start(run)
    assert line == "state: random parameters from seed 3, step 0" and not frozen
    assert_same_bits(named(state.params), drawn(run))


def test_a_source_gives_the_parameters_and_nothing_else(config):
    run = prepare(config)
    state, frozen, line, restored = start(run)
    assert line == f"state: parameters from {config.initial_checkpoint_path}, step 0"
    assert (int(state.step), frozen, restored) == (0, {}, None)
    assert_same_bits(named(state.params), WEIGHTS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract(run)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_the_runs_own_checkpoint_comes_before_the_source(config):
    run = prepare(config)
    folder_of(run)
    own = random_params(BASE, seed=1)
    save(run, own, step=7)
    state, frozen, line, restored = start(prepare(config))
    assert line == f"state: resuming {config.model_dir} at step 7"
    assert (int(state.step), frozen, restored) == (7, {}, {"row": 5})
    assert_same_bits(named(state.params), own)


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_from_the_source_again(config):
    folder_of(prepare(config))
    run = prepare(config)
    assert run.resuming
    state, _, line, _ = start(run)
    assert "parameters from" in line
    assert_same_bits(named(state.params), WEIGHTS)


def test_a_finished_run_needs_its_source_no_more(config, base):
    folder_of(prepare(config))
    save(prepare(config), WEIGHTS, step=4)
    base.rename(base.with_name("away"))
    try:
        assert "resuming" in start(prepare(config))[2]
    finally:
        base.with_name("away").rename(base)


# ---------------------------------------------------------------------- renamed, kept random


def test_an_assignment_map_renames_and_keeps_random(config):
    rules = [("encoder/layers_1/(.*)", r"encoder/layers_0/\1"), (r"decoder/layers_2/mlp/.*", None)]
    run = prepare(dataclasses.replace(config, assignment_map=rules))
    found = named(start(run)[0].params)
    renamed = {name: WEIGHTS[name.replace("encoder/layers_1/", "encoder/layers_0/")] for name in found}
    random = {name: leaf for name, leaf in drawn(run).items() if name.startswith("decoder/layers_2/mlp/")}
    assert len(random) == 3
    assert_same_bits(found, renamed | random)


# ---------------------------------------------------------------------- a part is trained


def test_what_is_not_trained_is_beside_the_state(config):
    run = prepare(dataclasses.replace(config, trainable=DECODER_ONLY))
    state, frozen, _, _ = start(run)
    assert set(frozen) == {name for name in WEIGHTS if not name.startswith("decoder/")}
    assert_same_bits(named(state.params) | frozen, WEIGHTS)


def test_adapters_are_random_on_the_sources_weights(config):
    run = prepare(dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LORA)))
    state, frozen, _, _ = start(run)
    adapters = named(state.params)
    assert all(map(is_adapter, adapters)) and adapters
    assert_same_bits(frozen, WEIGHTS)
    assert_same_bits(adapters, {name: leaf for name, leaf in drawn(run).items() if is_adapter(name)})


def test_a_part_is_resumed_beside_the_sources_weights(config):
    config = dataclasses.replace(config, trainable=DECODER_ONLY)
    run = prepare(config)
    folder_of(run)
    tuned = {name: leaf for name, leaf in random_params(BASE, seed=1).items() if name.startswith("decoder/")}
    save(run, tuned, step=2)
    state, frozen, line, _ = start(prepare(config))
    assert line.endswith("at step 2")
    assert_same_bits(named(state.params) | frozen, WEIGHTS | tuned)


def test_the_manifest_says_where_the_base_is(config, base, monkeypatch):
    monkeypatch.chdir(base.parent)
    for trainable, path in ((DECODER_ONLY, f"{base}/checkpoints/3"), (None, None)):
        relative = dataclasses.replace(config, initial_checkpoint_path=base.name, trainable=trainable)
        assert prepare(relative).manifest().get("base", {}).get("path") == path


def test_the_manifest_keeps_a_hubs_name(config, base, tmp_path, monkeypatch):
    """The folder of this machine's cache would mean nothing on another one."""
    convert(open_source(base), str(tmp_path / "snapshot"), vocabulary=vocabularies.byte(), format="hf")
    monkeypatch.setattr(hugging_face, "find_folder", lambda name, what: tmp_path / "snapshot")
    run = prepare(dataclasses.replace(config, initial_checkpoint_path="someone/small", trainable=DECODER_ONLY))
    assert run.manifest()["base"]["path"] == "someone/small"


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "model", "says"),
    [
        ({}, {"d_ff": 32}, "is a model with d_ff 24 and this configuration has 32; include the gin/models file"),
        ({}, {"num_decoder_layers": 4}, "is a model with num_decoder_layers 3 and this configuration has 4"),
        ({}, {"tie_embeddings": False}, "is a model with tie_embeddings True and this configuration has False"),
        ({"vocabulary": "train", "vocabulary_size": 100}, {}, "set VOCABULARY = %INITIAL_CHECKPOINT_PATH"),
        ({"initial_checkpoint_path": None, "trainable": DECODER_ONLY}, {}, "INITIAL_CHECKPOINT_PATH is None: set it"),
        ({"initial_checkpoint_path": None}, {"lora": LORA}, "INITIAL_CHECKPOINT_PATH is None: set it"),
        ({"trainable": [("encodr/.*", False)]}, {}, "TRAINABLE: 'encodr/.*' takes no parameter"),
        ({"trainable": [(".*", False)]}, {}, "TRAINABLE leaves no parameter to train"),
        ({}, {"lora": Lora(targets=("attention/query",))}, "Lora.targets: 'attention/query' names no kernel"),
        ({"trainable": [(".*/lora_b", True), (".*", False)]}, {"lora": LORA}, "/lora_a': an adapter starts at random"),
        (
            {"trainable": DECODER_ONLY, "assignment_map": [("encoder/layers_0/mlp/.*", None)]},
            {},
            "ASSIGNMENT_MAP gives 'encoder/layers_0/mlp/wi_0/kernel' another origin and TRAINABLE does not train it",
        ),
        ({"assignment_map": [("encodr/.*", None)]}, {}, "assignment_map: 'encodr/.*' takes no parameter"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(config, tmp_path, settings, model, says):
    model = dataclasses.replace(config.model, **model)
    with pytest.raises(UserError) as error:
        prepare(dataclasses.replace(config, model=model, **settings))
    assert says in one_line(error)
    assert not list(tmp_path.iterdir())


def test_another_vocabulary_of_the_same_size_is_refused(config, tmp_path):
    """A vocabulary that is trained again on other text: its embeddings would mean other tokens."""
    first = prepare(dataclasses.replace(config, initial_checkpoint_path=None, vocabulary="train", vocabulary_size=100))
    model = first.model
    write_run(tmp_path / "bytes", model, random_params(model))  # of bytes, in as many rows
    with pytest.raises(UserError, match="tokens that are not those of INITIAL_CHECKPOINT_PATH") as error:
        prepare(dataclasses.replace(first.config, initial_checkpoint_path=str(tmp_path / "bytes")))
    one_line(error)


def test_a_part_is_not_resumed_on_another_base(config, tmp_path):
    config = dataclasses.replace(config, trainable=DECODER_ONLY)
    folder_of(prepare(config))
    other = write_run(tmp_path / "other", BASE, random_params(BASE, seed=8))
    same = write_run(tmp_path / "same", BASE, WEIGHTS)
    prepare(dataclasses.replace(config, initial_checkpoint_path=str(same)))  # moved, and the same
    with pytest.raises(UserError, match=r"holds another run: base\.fingerprint is") as error:
        prepare(dataclasses.replace(config, initial_checkpoint_path=str(other)))
    one_line(error)


def test_other_rules_do_not_resume_a_run(config):
    config = dataclasses.replace(config, trainable=DECODER_ONLY)
    run = prepare(config)
    folder_of(run)
    save(run, {name: leaf for name, leaf in WEIGHTS.items() if name.startswith("decoder/")}, step=2)
    run = prepare(dataclasses.replace(config, trainable=[("decoder/layers_.*", True), (".*", False)]))
    with pytest.raises(UserError, match="only the checkpoint has parameter 'decoder/decoder_norm/scale'") as error:
        start(run)
    one_line(error)
