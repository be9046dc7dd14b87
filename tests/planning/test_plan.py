"""Plans as the door makes them: of CPU devices for real, of GPUs by formula, of TPUs by their compiler.

The goldens say where every parameter lives and which collectives a step runs; `python -m tests.planning.test_plan`
writes them anew, to be read before they are committed.
"""

import dataclasses
import importlib
import json
import time
from pathlib import Path

import jax
import pytest

from t5x_lite import config as gin_config
from t5x_lite import plan as plan_door
from t5x_lite.devices import KINDS
from t5x_lite.errors import UserError
from t5x_lite.partitioning import sharding_table
from t5x_lite.planning import compiled, plan, report
from t5x_lite.planning.estimate import abstract_arrays, estimate, roofline, seconds
from t5x_lite.planning.hlo import Collective, Traffic
from t5x_lite.planning.request import Request, make_request, parse_mesh
from t5x_lite.planning.search import ranked
from t5x_lite.planning.topology import Topology, parse

GOLDENS = Path(__file__).parent / "goldens"
PRESETS = ("data", "fsdp", "fsdp_model")
V5P = Topology("v5p:4x4x4", (4, 4, 4), 1, KINDS["v5p"])  # without libtpu
SMALLEST = ("--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1", "--gin.T5Config.d_model=64")


def asked(topology: Topology, *files: str, overrides=(), **changes) -> Request:
    gin_config.load(["gin/plan.gin", *files], overrides)
    mesh = changes.pop("mesh", gin_config.value("Partitioner.mesh_shape"))
    return make_request(gin_config.build("plan"), topology, mesh_shape=mesh, **changes)


def sharding_of(preset: str) -> str:
    request = asked(V5P, "gin/models/flan_t5_xxl.gin", f"gin/meshes/{preset}.gin")
    return sharding_table(abstract_arrays(request)[0])


def collectives_of(preset: str) -> dict:
    """What a step of a small model runs on 8 CPU devices: with jax's version, which decides over it."""
    request = asked(parse("cpu:8"), "gin/models/tiny.gin", f"gin/meshes/{preset}.gin", overrides=SMALLEST, batch=16)
    request = dataclasses.replace(request, config=dataclasses.replace(request.config, task_feature_lengths=SHORT))
    program = compiled.train_step(request, request.partitioner(jax.devices()[:8]))
    return {"jax": jax.__version__, "collectives": program.traffic.histogram()}


SHORT = {"inputs": 32, "targets": 16}


@pytest.mark.parametrize("preset", PRESETS)
def test_where_everything_of_xxl_lives(preset):
    assert sharding_of(preset) + "\n" == (GOLDENS / f"sharding_xxl_{preset}_64.txt").read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_collectives_of_a_step(preset):
    golden = json.loads((GOLDENS / f"collectives_tiny_{preset}_8.json").read_text())
    found = collectives_of(preset)
    if found["jax"] != golden["jax"]:
        # Another compiler may count differently; which kinds of traffic there are is the layout's.
        kinds = [{name.split(" ")[0] for name in each["collectives"]} for each in (found, golden)]
        assert kinds[0] == kinds[1]
    else:
        assert found == golden


def test_parts_of_an_optimizer_are_cut_as_their_parameter():
    """Adafactor's rows and columns too: what is whole on every device is small."""
    request = asked(V5P, "gin/models/flan_t5_xxl.gin")
    state, _ = abstract_arrays(request)
    whole = [leaf for leaf in jax.tree.leaves(state.opt_state) if not any(leaf.sharding.spec)]
    assert max(leaf.size for leaf in whole) <= 24 * 10240  # the sums over embed of a stack of mlp kernels
    assert sum(leaf.size for leaf in whole) < 4e6


def test_settings_of_the_command_line_come_before_those_of_the_files():
    request = asked(V5P, "gin/models/flan_t5_xl.gin", mesh=parse_mesh("fsdp=-1,model=4"), batch=128, remat="minimal")
    assert request.mesh == (1, 16, 4)
    assert (request.batch_size, request.model.remat, request.rows) == (128, "minimal", 8)
    assert 'Partitioner.mesh_shape = {"data": 1, "fsdp": 16, "model": 4}' in request.gin()


def test_what_it_says_to_paste_is_gin(tmp_path):
    request = asked(V5P, "gin/models/flan_t5_xl.gin", mesh={"fsdp": 16, "model": 4}, batch=128)
    (tmp_path / "pasted.gin").write_text(request.gin())
    again = asked(V5P, "gin/models/flan_t5_xl.gin", str(tmp_path / "pasted.gin"))
    assert (again.mesh, again.batch_size, again.model) == (request.mesh, request.batch_size, request.model)
    assert again.gin() == request.gin()


def test_what_it_says_to_paste_is_what_was_planned():
    """By the rules of the files that were given, not by those of another preset."""
    request = asked(V5P, "gin/models/flan_t5_xl.gin", "gin/meshes/fsdp.gin")
    assert "('mlp', ('fsdp',))" in request.gin()
    assert "model" not in next(line for line in request.gin().splitlines() if "rules" in line)


def test_a_search_lays_out_by_its_own_rules_whatever_the_file_says(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    plan_door.main(["--gin_file=gin/qa_flan_t5_xl.gin", "--topology=h100:8", "--search"])
    (tmp_path / "pasted.gin").write_text(capsys.readouterr().out.split("# for a gin file\n")[1])
    gin_config.load(["gin/qa_flan_t5_xl.gin", str(tmp_path / "pasted.gin")])
    pasted = gin_config.build("Partitioner", mesh_shape={"data": -1}).rules
    gin_config.load(["gin/plan.gin"])
    assert pasted == gin_config.build("Partitioner", mesh_shape={"data": -1}).rules


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--search", "--remat=full"], "--remat is what --search finds"),
        (["--search", "--mesh=data=-1"], "--mesh is what --search finds"),
        (["--search", "--microbatches=2"], "--microbatches is what --search finds"),
        (["--report=/nope/plan.html"], "--report: no folder '/nope'"),
    ],
)
def test_mistakes_are_said_before_anything_is_planned(flags, message, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(plan, "make_plan", None)
    with pytest.raises(UserError, match=message):
        plan_door.main(["--gin_file=gin/models/flan_t5_xl.gin", "--topology=h100:8", *flags])


def test_slices_are_crossed_by_data():
    two = dataclasses.replace(V5P, name="2*v5p:4x4x4", slices=2)
    assert asked(two, "gin/models/flan_t5_xl.gin").mesh == (2, 64, 1)
    for mesh in ({"fsdp": 128}, {"data": -1, "fsdp": 128}):
        message = r"128 devices of 2\*v5p:4x4x4; .* and data a multiple of 2: nothing else crosses slices"
        with pytest.raises(UserError, match=message):
            asked(two, "gin/models/flan_t5_xl.gin", mesh=mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 100}, "--batch 100 does not divide over 64 data shards in 1 microbatch"),
        ({"mesh": {"fsdp": 3}}, "does not fit the 64 devices of v5p:4x4x4"),
        ({"mesh": {"data": 0, "fsdp": -1}}, "does not fit the 64 devices of v5p:4x4x4"),
        ({"batch": -16}, r"--batch \(BATCH_SIZE\) is -16; it must be 1 or more"),
        ({"batch": 0}, r"--batch \(BATCH_SIZE\) is 0; it must"),
        ({"microbatches": 0}, r"--microbatches \(MICROBATCHES\) is 0; it must"),
        ({"microbatches": -1}, r"--microbatches \(MICROBATCHES\) is -1; it must"),
    ],
)
def test_what_does_not_fit_together(changes, message):
    with pytest.raises(UserError, match=message):
        asked(V5P, "gin/models/flan_t5_xl.gin", **changes)


@pytest.mark.parametrize("text", ["fsdp:4", "data=0,fsdp=-1", "data=--1", "data=-2", ""])
def test_no_mesh(text):
    with pytest.raises(UserError, match="write it like data=1,fsdp=-1,model=4"):
        parse_mesh(text)


def test_seconds_on_the_links():
    gather = Collective("all-gather", tuple(range(64)), 1, 64 * 10**9)
    assert seconds(gather, V5P) == pytest.approx(63e9 / (6 * 9e10))
    reduced = dataclasses.replace(gather, kind="all-reduce")
    assert seconds(reduced, V5P) == pytest.approx(2 * seconds(gather, V5P))


@pytest.mark.parametrize(
    ("topology", "mesh", "members"),
    [
        (dataclasses.replace(V5P, name="2*v5p:4x4x4", slices=2), {"data": 2, "fsdp": 16, "model": 4}, (0, 64)),
        (parse("h100:64"), {"data": 8, "fsdp": 4, "model": 2}, tuple(range(0, 64, 8))),
    ],
)
def test_gradients_between_slices_and_hosts_take_the_network(topology, mesh, members):
    """Though no more devices sum them than one slice, or host, has; what is cut over fsdp and model stays inside."""
    request = asked(topology, "gin/models/flan_t5_xl.gin", mesh=mesh)
    moved = {each.members: each for each in estimate(request).traffic.collectives}
    fsdp, model = mesh["fsdp"], mesh["model"]
    assert set(moved) == {members, tuple(range(0, fsdp * model, model)), tuple(range(model))}
    across = moved.pop(members)
    turns = 2 * (len(members) - 1) / len(members)
    assert seconds(across, topology) == pytest.approx(turns * across.bytes / topology.kind.network)
    assert all(seconds(each, topology) < 2 * each.bytes / topology.kind.link for each in moved.values())


def test_mfu_is_of_the_models_own_operations():
    """With nothing moved a step that computes nothing twice is at the peak, and full remat at about three quarters."""
    request = asked(V5P, "gin/models/flan_t5_xxl.gin", remat="none")
    nothing = dataclasses.replace(estimate(request).traffic, collectives=(), memory=0)
    assert roofline(request, nothing).mfu == pytest.approx(1.0)
    full = asked(V5P, "gin/models/flan_t5_xxl.gin", remat="full")
    assert 0.74 < roofline(full, nothing).mfu < 0.76


def test_of_adapters_no_speed_is_said_and_only_their_gradients_move():
    files = ["gin/models/flan_t5_xl.gin", "gin/lora.gin"]
    request = asked(parse("h100:8"), *files, mesh={"fsdp": -1})
    made = plan.make_plan(request, search=False, say=lambda line: None)
    assert made.time is None
    adapters = sum(leaf.size for leaf in jax.tree.leaves(abstract_arrays(request)[0].params))
    moved = {each.kind: each.bytes for each in made.moved.collectives}
    assert moved == {"all-gather": 2 * 2 * request.model.num_parameters, "reduce-scatter": 2 * adapters}
    searched = plan.make_plan(asked(parse("h100:8"), *files, mesh=None), search=True, say=lambda line: None)
    for text in (report.text(made), report.text(searched)):
        assert "no bound: parameters are frozen" in text
        assert "MFU" not in text and "tokens/s" not in text
    assert plan.make_plan(asked(parse("h100:8"), files[0]), search=False, say=lambda line: None).time.mfu > 0


def test_scores_of_long_targets_are_counted():
    """Of the decoder's attention to itself and to the inputs, as of the encoder's."""
    request = asked(parse("h100:8"), "gin/models/flan_t5_xl.gin", mesh={"fsdp": -1})

    lengths = {"inputs": 128, "targets": 4096}
    request = dataclasses.replace(request, config=dataclasses.replace(request.config, task_feature_lengths=lengths))
    rows, heads = request.rows, request.model.num_heads
    long = estimate(request)
    assert long.working > rows * heads * 4096 * (4096 + 128) * 10
    assert long.traffic.memory > request.model.num_decoder_layers * rows * heads * 4096 * (4096 + 128) * 4 * 8


def test_search_gives_the_fastest_that_fits_first():
    request = asked(parse("h100:8"), "gin/models/flan_t5_xl.gin", batch=64)
    found = ranked(request)
    assert all(each.estimate.total < KINDS["h100"].memory for each in found)
    assert [each.time.step for each in found] == sorted(each.time.step for each in found)
    made = plan.make_plan(request, search=True, say=lambda line: None)
    assert made.request == found[0].request
    assert "fits h100:8 by formula" in report.text(made)
    assert "# for a gin file" in report.text(made)


def test_search_for_a_batch_that_divides_over_no_mesh():
    """A batch is the search's to divide: no mesh is asked for with it."""
    request = asked(parse("h100:32"), "gin/models/flan_t5_xl.gin", mesh=None, batch=2)
    assert {each.request.mesh for each in ranked(request)} == {(1, 2, 16), (2, 1, 16)}
    with pytest.raises(UserError, match="--batch 1 divides over no mesh of 32 devices; take 2"):
        ranked(dataclasses.replace(request, batch_size=1))


def test_search_where_nothing_fits():
    request = asked(parse("a100:1"), "gin/models/flan_t5_xxl.gin", "gin/optimizers/adamw.gin", batch=1)
    with pytest.raises(UserError, match=r"nothing fits a100:1; the least is about \d+\.\d of 74.51 GiB"):
        ranked(request)


def test_a_plan_of_cpu_devices_is_compiled(tmp_path):
    request = asked(parse("cpu:8"), "gin/models/tiny.gin", overrides=SMALLEST, batch=16)
    request = dataclasses.replace(request, config=dataclasses.replace(request.config, task_feature_lengths=SHORT))
    started = time.monotonic()
    made = plan.make_plan(request, search=False, say=lambda line: None)
    assert made.train.memory.total > 0 and made.decode.memory.total > 0
    assert made.train.seconds + made.decode.seconds > time.monotonic() - started  # at the same time
    text = report.text(made)
    assert text.splitlines()[-1].startswith("fits cpu:8 by the compiler")
    report.write(str(tmp_path / "plan.html"), made)
    page = (tmp_path / "plan.html").read_text()
    assert "token_embedder/embedding" in page and "http" not in page


def test_out_of_memory_is_an_answer():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.70G of 15.75G hbm. Exceeded by 4.95G."
    assert compiled._needed(message) == int(20.7 * 2**30)
    alone = "RESOURCE_EXHAUSTED: Allocation (size=19604480000) would exceed memory (size=17179869184) :: %s2"
    assert compiled._needed(alone) == 19604480000
    request = asked(dataclasses.replace(V5P, name="v5e:16x16", kind=KINDS["v5e"]), "gin/models/flan_t5_xxl.gin")
    failed = compiled.Program(1.0, None, None, int(20.7 * 2**30))
    made = plan.Plan(request, estimate(request), failed, compiled_to(2**30))
    assert not made.fits
    assert report.verdict(made) == (
        "does not fit v5e:16x16: needs 20.70 of 15.75 GiB a device; try --microbatches=2, or --search"
    )


def compiled_to(size: int) -> compiled.Program:
    return compiled.Program(1.0, compiled.Memory(size, 0, 0, 0), Traffic((), 1))


def test_a_run_also_decodes_with_the_optimizer_in_memory():
    adamw = "gin/models/flan_t5_xl.gin", "gin/optimizers/adamw.gin"
    request = asked(dataclasses.replace(V5P, name="v5e:4x4", shape=(4, 4), kind=KINDS["v5e"]), *adamw)
    room = KINDS["v5e"].memory
    made = plan.Plan(request, estimate(request), compiled_to(2**30), compiled_to(2**30))
    moments = 2 * 4 * request.model.num_parameters / 16
    assert made.optimizer == pytest.approx(moments, rel=0.01)
    assert made.fits
    assert report.verdict(made).startswith(f"fits v5e:4x4 by the compiler: {1 + moments / 2**30:.2f} of 15.75 GiB")
    assert f"beside the optimizer's {moments / 2**30:.2f}" in report.text(made)
    refused = compiled.Program(1.0, None, None, room)
    for decode in (refused, compiled_to(room), compiled.Program(1.0, None, None)):
        made = dataclasses.replace(made, decode=decode)
        assert not made.fits
        needed = f"{(room + moments) / 2**30:.2f} of 15.75" if decode.memory or decode.needed else "too many"
        assert report.verdict(made).startswith(f"does not fit v5e:4x4: decoding needs {needed} GiB a device, the opt")


if __name__ == "__main__":
    importlib.import_module("tests.conftest")  # 8 devices, of which JAX has not asked so far
    jax.config.update("jax_platforms", "cpu")
    texts = {f"sharding_xxl_{name}_64.txt": sharding_of(name) for name in PRESETS}
    texts |= {f"collectives_tiny_{name}_8.json": json.dumps(collectives_of(name), indent=1) for name in PRESETS}
    for name, text in texts.items():
        (GOLDENS / name).write_text(text + "\n")
