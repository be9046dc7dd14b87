"""Programs as text: written by hand, with what each line moves beside it, and compiled, against the unrolled ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.planning.hlo import Traffic, traffic

LOOP = """HloModule jit_f

%fused (p.0: f32[24,8,16], p.1: s32[]) -> f32[8,16] {
  %p.0 = f32[24,8,16]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,16]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %layer = f32[8,16]{1,0} bitcast(%slice)
}

%all-reduce-scatter.1 (q: bf16[64,16]) -> bf16[8,16] {
  %q = bf16[64,16]{1,0} parameter(0)
  %sum = bf16[64,16]{1,0} all-reduce(%q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = bf16[8,16]{1,0} dynamic-slice(%sum, %i, %z), dynamic_slice_sizes={8,16}
}

%condition (s: (s32[], f32[24,8,16])) -> pred[] {
  %s = (s32[], f32[24,8,16]{2,1,0}) parameter(0)
  %limit = s32[] constant(24)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (s: (s32[], f32[24,8,16])) -> (s32[], f32[24,8,16]) {
  %s = (s32[], f32[24,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %w = f32[24,8,16]{2,1,0} get-tuple-element(%s), index=1
  %layer = f32[8,16]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %whole = f32[64,16]{1,0:T(8,128)} all-gather(%layer), replica_groups=[1,8]<=[8], dimensions={0}
  %near = f32[8,16]{1,0:T(8,128)S(1)} copy(%layer)
  ROOT %next = (s32[], f32[24,8,16]{2,1,0}) tuple(%i, %w)
}

ENTRY %main (a: f32[24,8,16], g: bf16[64,16]) -> bf16[8,16] {
  %a = f32[24,8,16]{2,1,0} parameter(0)
  %g = bf16[64,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[24,8,16]{2,1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[24,8,16]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %grad = bf16[8,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    found = traffic(LOOP, 8)
    assert found.histogram() == {"all-gather over 8": 24, "reduce-scatter over 8": 1}
    gather, scatter = found.collectives
    assert gather.bytes == 24 * 64 * 16 * 4
    assert scatter.bytes == 64 * 16 * 2  # what is taken in, though its name is all-reduce


def test_memory_is_that_of_slices_and_not_of_the_fast_kind():
    layer, counter = 8 * 16 * 4, 4
    gather = layer + 64 * 16 * 4
    a_turn = (layer + counter + layer) + gather + layer  # fusion reads a slice and writes it; the copy only reads
    assert traffic(LOOP, 8).memory == 24 * a_turn + (64 + 8) * 16 * 2


def one(instruction: str, others: str = "") -> Traffic:
    """Of a program of 4 devices that runs one instruction, on arrays of 512 bytes."""
    return traffic(
        f"""{others}ENTRY %main (a: f32[128], b: f32[128]) -> f32[128] {{
  %a = f32[128]{{0}} parameter(0)
  %b = f32[128]{{0}} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = {instruction}
}}
""",
        4,
    )


@pytest.mark.parametrize(
    ("instruction", "memory"),
    [
        ("(f32[128]{0:S(1)}, f32[128]{0}, u32[]{:S(2)}) copy-start(%a)", 512),
        ("(f32[128]{0}, f32[128]{0}, u32[]{:S(2)}) copy-start(%a)", 1024),
        ("f32[128]{0} copy-done(%a)", 0),
    ],
)
def test_a_copy_that_is_started_reads_and_writes_once(instruction, memory):
    assert one(instruction).memory == memory


@pytest.mark.parametrize(
    ("instruction", "kind", "handed_out", "memory"),
    [
        ("f32[128]{0} all-reduce-start(%a), to_apply=%add", "all-reduce", 512, 1024),
        ("(f32[128]{0}, f32[128]{0}) all-reduce-start(%a, %b), to_apply=%add", "all-reduce", 1024, 2048),
        ("(f32[128]{0}, f32[512]{0}) all-gather-start(%a), dimensions={0}", "all-gather", 2048, 2560),
        (
            "((f32[128]{0}, f32[128]{0}), (f32[512]{0}, f32[512]{0})) all-gather-start(%a, %b), dimensions={0}",
            "all-gather",
            4096,
            5120,
        ),
        (
            "(f32[128]{0}, f32[128]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            512,
            1024,
        ),
        ("((f32[128]{0}), f32[32]{0}, u32[]) reduce-scatter-start(%a), to_apply=%add", "reduce-scatter", 512, 640),
    ],
)
def test_a_start_counts_what_it_makes_and_not_its_operands_again(instruction, kind, handed_out, memory):
    found = one(instruction)
    [collective] = found.collectives
    assert (collective.kind, collective.bytes, found.memory) == (kind, handed_out, memory)


SCATTER = """%inner (p: f32[128]) -> f32[32] {
  %p = f32[128]{0} parameter(0)
  ROOT %scatter = f32[32]{0} reduce-scatter(%p), replica_groups={}, dimensions={0}, to_apply=%add
}

"""


def test_what_runs_beside_counts_as_its_computation():
    found = one("((f32[128]{0}), f32[32]{0}, s32[]) async-start(%a), calls=%inner", SCATTER)
    assert found.memory == 512 + 128
    assert [(each.kind, each.count, each.bytes) for each in found.collectives] == [("reduce-scatter", 1, 512)]


@pytest.mark.parametrize(
    "branches", ["true_computation=%inner, false_computation=%inner", "branch_computations={%inner, %inner}"]
)
def test_branches_are_counted(branches):
    found = one(f"f32[32]{{0}} conditional(%i, %a, %a), {branches}", SCATTER)
    assert found.memory == 2 * (512 + 128)
    assert found.histogram() == {"reduce-scatter over 4": 2}


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", (0, 2)),
        ("replica_groups={}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
    ],
)
def test_groups_in_every_way_of_writing_them(groups, members):
    text = f"""ENTRY %main (a: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} parameter(0)
  ROOT %r = f32[4]{{0}} all-reduce(%a), {groups}, to_apply=%add
}}
"""
    assert traffic(text, 4).collectives[0].members == members


def compiled(scan: bool) -> str:
    """Six layers of 16 x 16 whose weights are cut over 8 devices."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, cut = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), (None, "fsdp")))

    def layer(x, w):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

    def f(x, ws):
        if scan:
            return jax.lax.scan(layer, x, ws)[0].sum()
        for w in ws:
            x, _ = layer(x, w)
        return x.sum()

    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    ws = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32, sharding=cut)
    return jax.jit(f).lower(x, ws).compile().as_text()


def test_scanned_layers_move_what_unrolled_ones_move():
    assert len(jax.devices()) == 8
    scanned, unrolled = (traffic(compiled(scan), 8) for scan in (True, False))
    sizes = [{each.kind: each.bytes for each in found.collectives}["all-gather"] for found in (scanned, unrolled)]
    assert sizes == [6 * 16 * 16 * 4] * 2
    assert np.isclose(scanned.memory, unrolled.memory, rtol=0.3)  # once, not six times, would be a fifth
