"""The configuration layer: what reaches a configurable, and the one line that each mistake becomes."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import pytest

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.partitioning import bytes_per_device
from t5x_lite.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Kitchen:
    dishes: int
    name: str = "none"
    rate: float = 0.5
    open: bool = True
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    chef: str | None = None


config.register("kitchen", Kitchen)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "base.gin").write_text("kitchen.dishes = %DISHES\nkitchen.name = %NAME\nNAME = 'base'\n")
    path = tmp_path / "kitchen.gin"
    path.write_text("include 'base.gin'\nDISHES = 3\n")
    return str(path)


def kitchen(file, *overrides):
    config.load([file], [f"--gin.{override}" for override in overrides])
    return config.build("kitchen")


def test_a_file_and_what_it_includes_reach_the_configurable(file):
    assert kitchen(file) == Kitchen(dishes=3, name="base")


@pytest.mark.parametrize(
    "override, field, value",
    [
        ("DISHES=7", "dishes", 7),
        ("NAME=/tmp/run", "name", "/tmp/run"),
        ("NAME=runs/qa", "name", "runs/qa"),
        ('NAME="quoted"', "name", "quoted"),
        ("NAME=7up", "name", "7up"),
        ("kitchen.rate=1", "rate", 1),
        ("kitchen.rate=1e-4", "rate", 1e-4),
        ("kitchen.sizes={'a': 1}", "sizes", {"a": 1}),
        ("kitchen.chef=None", "chef", None),
        ("kitchen.chef=%NAME", "chef", "base"),
        ("kitchen.open=False", "open", False),
    ],
)
def test_overrides(file, override, field, value):
    assert getattr(kitchen(file, override), field) == value


@pytest.mark.parametrize(
    "override, says",
    [
        ("DISHS=7", "--gin.DISHS: nothing reads 'DISHS'; nearest: 'DISHES'"),
        ("DISHES=many", "kitchen.dishes is 'many', a str; it must be a whole number"),
        ("DISHES=True", "kitchen.dishes is True, a bool; it must be a whole number"),
        ("kitchen.rate=fast", "kitchen.rate is 'fast', a str; it must be a number"),
        ("kitchen.chef=5", "kitchen.chef is 5, a int; it must be text or None"),
        ("kitchen.dishs=7", "doesn't have a parameter named 'dishs'; nearest: 'dishes'"),
        ("kitchn.dishes=7", "nearest: 'kitchen'"),
        ("DISHES", "has no value; write --gin.NAME=VALUE"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_nearest_name(file, override, says):
    with pytest.raises(UserError) as caught:
        kitchen(file, override)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("kitchen.dishes = %DISHES\n", "DISHES is not set; write DISHES = ... in a gin file, or --gin.DISHES=VALUE"),
        ("kitchen.name = 'a'\n", "missing a required argument: 'dishes'"),
        ("kitchen.dishes = %gin.REQUIRED\n", "kitchen"),
        ("NAME = 'a'\nkitchen.dishes = = 3\n", "bad.gin:2"),
        ("NAME = 'a'\n\nkitchn.dishes = 3\n", "bad.gin:3"),
        ("include 'bas.gin'\n", "nearest: 'base.gin'"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(tmp_path, text, says):
    path = tmp_path / "bad.gin"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        config.load([str(path)])
        config.build("kitchen")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(file):
    with pytest.raises(UserError, match=r"no file 'gin/qaa\.gin'; nearest: 'gin/qa\.gin'"):
        config.load(["gin/qaa.gin"])


def test_the_written_configuration_makes_the_same_object_again(file, tmp_path):
    made = kitchen(file, "NAME=runs/x", "kitchen.sizes={'a': 1}")
    config.write_config(str(tmp_path))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["kitchen"]["dishes"] == 3 and written["macros"]["NAME"] == "runs/x"
    config.load([str(tmp_path / "config.gin")])
    assert config.build("kitchen") == made


def test_a_run_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        config.load_run(str(tmp_path))


def test_every_shipped_file_builds_its_objects():
    for name in ("tiny", "flan_t5_small", "flan_t5_base", "flan_t5_large", "flan_t5_xl", "flan_t5_xxl"):
        config.load([f"gin/models/{name}.gin"])
        config.build("T5Config", vocab_size=32128)
    for name in ("one_device", "data", "fsdp", "fsdp_model"):
        config.load([f"gin/meshes/{name}.gin"])
        assert config.build("Partitioner").data_size >= 1
    for name in ("adafactor", "adamw", "adamw_rms_scaled"):
        config.load([f"gin/optimizers/{name}.gin"], ["--gin.TRAIN_STEPS=1000"])
        config.build(name)


def test_qa_gin_is_a_whole_run():
    config.load(["gin/qa.gin"], ["--gin.MODEL_DIR=/nowhere", "--gin.BATCH_SIZE=64"])
    run = config.build("train")
    assert (run.model_dir, run.batch_size, run.mixture_or_task_name) == ("/nowhere", 64, "qa")


def test_the_file_of_xl_cuts_the_whole_state_over_the_devices():
    """Shapes alone: no memory is taken for it."""
    config.load(["gin/qa_flan_t5_xl.gin"], ["--gin.MODEL_DIR=gs://bucket/run"])
    run = config.build("train")
    assert (run.model.dtype, run.model.param_dtype, run.model.remat) == ("bfloat16", "float32", "full")
    state = abstract_state(run.model, run.optimizer, run.partitioner)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert count == 2_849_757_184
    devices = run.partitioner.data_size
    assert devices == 8 and run.batch_size % 16 == 0  # the chips of a v5litepod-16 too
    assert bytes_per_device(state.params) < 1.01 * 4 * count / devices
    assert bytes_per_device(state.opt_state) < 0.1 * bytes_per_device(state.params)


def test_importing_the_configuration_imports_no_tensorflow_or_jax():
    code = "import sys, t5x_lite.config; assert not {'tensorflow', 'jax', 'seqio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
