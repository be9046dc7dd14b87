"""The settings that train fastest and fit: ranked by formula, proved by the compiler."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from t5x_lite.errors import UserError
from t5x_lite.planning.estimate import Estimate, Time, estimate, roofline
from t5x_lite.planning.request import Request

_MODEL_AT_MOST, _MICROBATCHES_AT_MOST = 16, 64
_SPARE = 0.12  # of the memory: the formula was seen to be up to a tenth below the compiler


class Candidate(NamedTuple):
    request: Request
    estimate: Estimate
    time: Time


def ranked(request: Request) -> list[Candidate]:
    """Meshes, remat policies and numbers of microbatches that should fit, the fastest first.

    `model`, microbatches and `data` in a slice are powers of two, and `offload` is not tried: its traffic with the host
    has no formula. The batch is the request's. Raises UserError where it divides over no mesh, and where nothing fits,
    with what comes closest.
    """
    if request.topology.kind is None:
        raise UserError("--search ranks by the devices' peaks, and those of a CPU are not known; name a TPU or a GPU")
    room = request.topology.kind.memory * (1 - _SPARE)
    estimates = [(each, estimate(each)) for each in _all(request)]
    tried = [Candidate(each, found, roofline(each, found.traffic)) for each, found in estimates]
    if not tried:
        size, batch = request.topology.size, request.batch_size
        least = size // max(_models(request))
        near = max(least, round(batch / least) * least)
        raise UserError(f"--search: --batch {batch} divides over no mesh of {size} devices; take {near}")
    fitting = [candidate for candidate in tried if candidate.estimate.total <= room]
    if not fitting:
        least = min(tried, key=lambda candidate: candidate.estimate.total)
        needed, there = (size / 2**30 for size in (least.estimate.total, request.topology.kind.memory))
        raise UserError(
            f"--search: nothing fits {request.topology.name}; the least is about {needed:.1f} of {there:.2f} GiB "
            f"({describe(least.request)}); take more devices or a smaller --batch"
        )
    # Of equals the one with less to go wrong: fewer parts, then less memory.
    return sorted(fitting, key=lambda c: (c.time.step, c.request.microbatches, c.estimate.total))


def describe(request: Request) -> str:
    data, fsdp, model = request.mesh
    parts = f"{request.microbatches} microbatch{'es' if request.microbatches > 1 else ''}"
    return f"data {data} x fsdp {fsdp} x model {model}, remat {request.model.remat}, {parts}"


def _all(request: Request) -> Iterator[Request]:
    size, slices = request.topology.size, request.topology.slices
    for model in _models(request):
        for data in (slices * power for power in _powers(size // slices // model)):
            if size % (data * model):
                continue
            mesh = data, size // data // model, model
            for remat in ("none", "minimal", "full"):
                for microbatches in _powers(_MICROBATCHES_AT_MOST):
                    if request.batch_size % (mesh[0] * mesh[1] * microbatches) == 0:
                        changed = dataclasses.replace(request.model, remat=remat)
                        yield dataclasses.replace(request, mesh=mesh, model=changed, microbatches=microbatches)


def _models(request: Request) -> list[int]:
    """Sizes of the model axis."""
    heads, chips = request.model.num_heads, request.topology.size // request.topology.slices
    return [model for model in _powers(_MODEL_AT_MOST) if chips % model == 0 and heads % model == 0]


def _powers(limit: int) -> list[int]:
    return [2**n for n in range(limit.bit_length()) if 2**n <= limit]
