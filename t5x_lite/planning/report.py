"""A plan as text for the terminal, and as one HTML file that opens offline."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import jax

from t5x_lite.model.names import named
from t5x_lite.partitioning import MESH_AXES, bytes_per_device, sharding_table
from t5x_lite.planning.compiled import Memory
from t5x_lite.planning.estimate import Time, abstract_arrays, seconds
from t5x_lite.planning.plan import Plan
from t5x_lite.planning.request import Request
from t5x_lite.planning.search import describe

_GIB = 2**30
_SHOWN = 8  # of a search's candidates

Rows = list[tuple[str, ...]]


def text(plan: Plan) -> str:
    """Everything about the plan; the verdict stands last, where a terminal shows it."""
    parts = [sharding_table(abstract_arrays(plan.request)[0].params), "", _aligned(summary(plan))]
    if rows := collectives(plan):
        parts += ["", _aligned([("collective", "devices", "a step", "GB a step", "ms"), *rows])]
    if rows := candidates(plan):
        parts += ["", "the fastest that should fit, by formula", _aligned(rows)]
    parts += ["", verdict(plan)]
    if plan.candidates and plan.fits:
        parts += ["", "# for a gin file", plan.request.gin()]
    return "\n".join(parts)


def summary(plan: Plan) -> Rows:
    """(what, how much) of memory, operations and time."""
    request, found, time = plan.request, plan.estimate, plan.time
    kind = request.topology.kind
    mesh = " x ".join(f"{name} {size}" for name, size in zip(MESH_AXES, request.mesh, strict=True))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_arrays(request)[0].params))
    parts = f"{request.microbatches} microbatch(es) of {request.rows} row(s) a device"
    rows = [
        ("model", f"{parameters / 1e6:,.1f} M parameters trained, {request.model.dtype}, remat {request.model.remat}"),
        ("devices", f"{request.topology.size} of {request.topology.name}, mesh {mesh}"),
        ("batch", f"{request.batch_size} rows of {request.inputs} + {request.targets} tokens, {parts}"),
    ]
    if kind:
        rows.append(("memory a device", f"{kind.memory / _GIB:.2f} GiB"))
    for name, program, beside in (("train step", plan.train, 0), ("decoding", plan.decode, plan.optimizer)):
        if program and program.memory:
            rows.append((name, _memory(program.memory, beside, kind.memory if kind else None)))
        elif program:
            needed = f": needs {program.needed / _GIB:.2f} GiB" if program.needed else ""
            rows.append((name, f"does not fit{needed}"))
    sizes = {
        "state": found.state,
        "gradients": found.gradients,
        "kept activations": found.activations,
        "working": found.working,
    }
    by_part = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in sizes.items())
    moved = plan.moved
    rows.append(("by formula", f"{found.total / _GIB:.2f} GiB: {by_part}"))
    if not plan.trains_all:
        no_speed = "no bound: parameters are frozen, and what the backward pass then leaves out has no formula"
        return [*rows, ("memory traffic", f"{moved.memory / 1e9:.1f} GB"), ("speed, roofline", no_speed)]
    rows += [
        ("operations", f"{plan.flops / 1e12:.2f} TFLOP a device and step, forward and backward, nothing twice"),
        ("memory traffic", f"{moved.memory / 1e9:.1f} GB; {plan.flops / moved.memory:.0f} FLOP a byte"),
    ]
    return rows + (_speed(plan, time) if time else [])


def _speed(plan: Plan, time: Time) -> Rows:
    request = plan.request
    compute, memory, links = (seconds * 1e3 for seconds in (time.compute, time.memory, time.communication))
    rows = request.batch_size / time.step
    tokens = rows * (request.inputs + request.targets)
    larger = f"the larger of compute {compute:.1f} and memory {memory:.1f}"
    return [
        ("step, roofline", f"{time.step * 1e3:.1f} ms: {larger}, and communication {links:.1f}, none of it hidden"),
        ("speed, roofline", f"MFU {time.mfu:.1%}; {tokens:,.0f} tokens/s, {rows:,.1f} rows/s"),
    ]


def _memory(memory: Memory, beside: int, room: int | None) -> str:
    parts = f"arguments {memory.arguments / _GIB:.2f}, temporaries {memory.temporaries / _GIB:.2f}"
    parts += f", code {memory.code / _GIB:.2f}" if memory.code > 0.005 * _GIB else ""
    parts += f", on the host {memory.host / _GIB:.2f}" if memory.host else ""
    parts += f", beside the optimizer's {beside / _GIB:.2f}" if beside else ""
    total = memory.total + beside
    left = f"; {(room - total) / _GIB:.2f} left" if room else ""
    return f"{total / _GIB:.2f} GiB: {parts}{left}"


def collectives(plan: Plan) -> Rows:
    """(kind, devices, times, GB, milliseconds) of each kind and size of group in one train step."""
    topology = plan.request.topology
    return [
        (
            each.kind,
            str(len(each.members)),
            f"{each.count}",
            f"{each.bytes / 1e9:.3f}",
            f"{seconds(each, topology) * 1e3:.1f}" if topology.kind else "",
        )
        for each in plan.moved.collectives
        if len(each.members) > 1
    ]


def candidates(plan: Plan) -> Rows:
    if not plan.candidates:
        return []
    rows = [
        (
            describe(each.request),
            *((f"{each.time.step * 1e3:.0f} ms", f"MFU {each.time.mfu:.0%}") if plan.trains_all else ()),
            f"{each.estimate.total / _GIB:.1f} GiB",
        )
        for each in plan.candidates[:_SHOWN]
    ]
    return rows


def verdict(plan: Plan) -> str:
    """One line: fits or not, by whom, and what to do."""
    request, program = plan.request, plan.train
    name, kind, formula = request.topology.name, request.topology.kind, plan.estimate.total / _GIB
    room = f" of {kind.memory / _GIB:.2f}" if kind else ""
    if program is None:
        what, then = ("fits", "") if plan.fits else ("does not fit", f"; try {_advice(request)}")
        return f"{what} {name} by formula: {formula:.2f}{room} GiB a device{then}"
    if program.memory is None:
        needed = f"{program.needed / _GIB:.2f}" if program.needed else f"about {formula:.2f} (by formula)"
        return f"does not fit {name}: needs {needed}{room} GiB a device; try {_advice(request)}"
    if not plan.fits or plan.decoding is None:
        total = plan.decoding or (plan.decode.needed and plan.decode.needed + plan.optimizer)
        needed = f"{total / _GIB:.2f}{room}" if total else "too many"
        beside = f"the optimizer's {plan.optimizer / _GIB:.2f} with it"
        return f"does not fit {name}: decoding needs {needed} GiB a device, {beside}; try {_fewer_rows(request)}"
    total = max(program.memory.total, plan.decoding) / _GIB
    waited = max(program.seconds, plan.decode.seconds)
    return f"fits {name} by the compiler: {total:.2f}{room} GiB a device (compiled in {waited:.0f} s)"


def _advice(request: Request) -> str:
    if request.model.remat in ("none", "minimal"):
        return "--remat=full, or --search"
    return _fewer_rows(request)


def _fewer_rows(request: Request) -> str:
    if request.rows > 1:
        return f"--microbatches={request.microbatches * 2}, or --search"
    return "more devices, a mesh with a model axis, or --search"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(map(str.rstrip, lines))


# ---------------------------------------------------------------------- HTML


def write(path: str, plan: Plan) -> None:
    """Writes the report, whole or not at all."""
    unfinished = Path(f"{path}.tmp")
    unfinished.write_text(html(plan), encoding="utf-8")
    unfinished.replace(path)


def html(plan: Plan) -> str:
    layouts = [("parameter", "shape", "dtype", "layout", "bytes a device")]
    for name, leaf in named(abstract_arrays(plan.request)[0].params).items():
        layout = ", ".join(map(str, leaf.sharding.spec)) or "whole on every device"
        shape = " x ".join(map(str, leaf.shape))
        layouts.append((name, shape, str(leaf.dtype), layout, f"{bytes_per_device(leaf):,}"))
    moved = [("kind", "devices", "times", "GB", "ms"), *collectives(plan)]
    sections = [
        f"<h1>Plan for {escape(plan.request.topology.name)}</h1><p class=verdict>{escape(verdict(plan))}</p>",
        "<h2>Memory of one device</h2>" + _bars(plan),
        "<h2>Summary</h2>" + _table(summary(plan), head=False),
        "<h2>Collectives of a train step</h2>" + _table(moved),
    ]
    if plan.candidates:
        sections.append("<h2>By formula, the fastest that should fit</h2>" + _table(candidates(plan), head=False))
    sections += [
        "<h2>Settings</h2><pre>" + escape(plan.request.gin()) + "</pre>",
        "<h2>Where every parameter lives</h2>" + _table(layouts),
    ]
    return _PAGE.replace("{{body}}", "\n".join(sections))


def _bars(plan: Plan) -> str:
    """One bar of memory for each program, as long as what a device has."""
    kind = plan.request.topology.kind
    found = plan.estimate
    bars = {"by formula": {"state": found.state, "gradients": found.gradients, "activations": found.activations}}
    bars["by formula"]["working"] = found.working
    for name, program in (("train step", plan.train), ("decoding", plan.decode)):
        if program and program.memory:
            memory = program.memory
            bars[name] = {"arguments": memory.arguments, "temporaries": memory.temporaries, "code": memory.code}
            if program is plan.decode:
                bars[name]["the optimizer's"] = plan.optimizer
    longest = max(sum(parts.values()) for parts in bars.values())
    whole = max(longest, kind.memory if kind else 0)
    lines = []
    for name, parts in bars.items():
        pieces = "".join(
            f'<span class="p{n}" style="width:{size / whole:.2%}" title="{part} {size / _GIB:.2f} GiB"></span>'
            for n, (part, size) in enumerate(parts.items())
        )
        words = ", ".join(f"{part} {size / _GIB:.2f}" for part, size in parts.items())
        lines.append(f"<div class=row><b>{name}</b><div class=bar>{pieces}</div><small>{words} GiB</small></div>")
    room = f"<p><small>The bar's length is {whole / _GIB:.2f} GiB.</small></p>"
    return "".join(lines) + room


def _table(rows: Rows, *, head: bool = True) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if head and number == 0 else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>t5x_lite plan</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; }
tr + tr { border-top: 1px solid #8884; }
.verdict { font-size: 1.2rem; font-weight: 600; }
.row { margin: .6rem 0; } .bar { height: 1.4rem; background: #8883; display: flex; }
.p0 { background: #4269d0; } .p1 { background: #efb118; } .p2 { background: #ff725c; } .p3 { background: #6cc5b0; }
pre { background: #8882; padding: .8rem; overflow-x: auto; }
</style>
<body>{{body}}</body></html>
"""
