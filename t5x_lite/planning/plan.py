"""A plan: what one request needs and how long its step takes, by the compiler where there is one, else by formula."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax

from t5x_lite.model.flops import train_flops
from t5x_lite.partitioning import Partitioner, bytes_per_device
from t5x_lite.planning import compiled
from t5x_lite.planning.compiled import Program
from t5x_lite.planning.estimate import Estimate, Time, abstract_arrays, estimate, roofline
from t5x_lite.planning.hlo import Traffic
from t5x_lite.planning.request import Request
from t5x_lite.planning.search import Candidate, describe, ranked

_COMPILED_AT_MOST = 4  # of a search's candidates


@dataclasses.dataclass(frozen=True)
class Plan:
    """`train` and `decode` are both None where nothing is compiled (GPUs)."""

    request: Request
    estimate: Estimate
    train: Program | None
    decode: Program | None
    candidates: tuple[Candidate, ...] = ()

    @property
    def fits(self) -> bool:
        kind = self.request.topology.kind
        if self.train is None:
            return kind is None or self.estimate.total <= kind.memory
        if self.train.memory is None or self.decoding is None:
            return False
        return kind is None or self.decoding <= kind.memory

    @property
    def optimizer(self) -> int:
        """Bytes of the optimizer's state on one device, which stays there while a run decodes."""
        return bytes_per_device(abstract_arrays(self.request)[0].opt_state)

    @property
    def decoding(self) -> int | None:
        """Bytes on one device while a run decodes; None where that is not compiled, or refused."""
        return self.decode.memory.total + self.optimizer if self.decode and self.decode.memory else None

    @property
    def moved(self) -> Traffic:
        """By a train step, of one device: as compiled, else by formula."""
        return self.train.traffic if self.train and self.train.traffic else self.estimate.traffic

    @property
    def trains_all(self) -> bool:
        """Whether no parameter is frozen: what the backward pass leaves out for those has no formula."""
        return not jax.tree.leaves(abstract_arrays(self.request)[1])

    @property
    def time(self) -> Time | None:
        return roofline(self.request, self.moved) if self.trains_all else None

    @property
    def flops(self) -> int:
        """Of the model, for one step of one device: forward and backward, nothing twice."""
        request = self.request
        of_row = train_flops(request.model, request.inputs, request.targets)
        return request.batch_size * of_row // request.topology.size


def make_plan(request: Request, *, search: bool, say: Callable[[str], None]) -> Plan:
    """Compiles the request, or, with `search`, candidates in the order of their estimated speed until one fits."""
    topology = request.topology
    partitioner_of = _partitioners(request)
    if not search:
        if not topology.compiles:
            return Plan(request, estimate(request), None, None)
        return _compile(request, partitioner_of(request), (), say)
    candidates = tuple(ranked(request))
    if not topology.compiles:
        best = candidates[0]
        return Plan(best.request, best.estimate, None, None, candidates)
    for candidate in candidates[:_COMPILED_AT_MOST]:
        plan = _compile(candidate.request, partitioner_of(candidate.request), candidates, say)
        if plan.fits:
            break
        say("it does not fit; the next one")
    return plan


def _partitioners(request: Request) -> Callable[[Request], Partitioner]:
    if not request.topology.compiles:
        return lambda _: None
    devices = request.topology.devices()
    return lambda each: each.partitioner(devices)


def _compile(
    request: Request, partitioner: Partitioner, candidates: tuple[Candidate, ...], say: Callable[[str], None]
) -> Plan:
    say(f"compiling the train step and the decoding program for {request.topology.name}: {describe(request)}")
    with ThreadPoolExecutor() as pool:  # the compiler holds no lock of Python's
        programs = [pool.submit(make, request, partitioner) for make in (compiled.train_step, compiled.decoding)]
    train, decode = (program.result() for program in programs)
    return Plan(request, estimate(request), train, decode, candidates)
