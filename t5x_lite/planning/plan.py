"""A plan: what one request needs and how long its step takes, by the compiler where there is one, else by formula."""

import dataclasses
from collections.abc import Callable

from t5x_lite.model.flops import train_flops
from t5x_lite.partitioning import Partitioner
from t5x_lite.planning import compiled
from t5x_lite.planning.compiled import Program
from t5x_lite.planning.estimate import Estimate, Time, estimate, roofline
from t5x_lite.planning.hlo import Traffic
from t5x_lite.planning.request import Request
from t5x_lite.planning.search import Candidate, describe, ranked

_COMPILED_AT_MOST = 4  # of a search's candidates


@dataclasses.dataclass(frozen=True)
class Plan:
    """`train` and `decode` are None where nothing is compiled (GPUs)."""

    request: Request
    estimate: Estimate
    train: Program | None
    decode: Program | None
    candidates: tuple[Candidate, ...] = ()

    @property
    def fits(self) -> bool:
        if self.train is None:
            kind = self.request.topology.kind
            return kind is None or self.estimate.total <= kind.memory
        return self.train.memory is not None

    @property
    def moved(self) -> Traffic:
        """By a train step, of one device: as compiled, else by formula."""
        return self.train.traffic if self.train and self.train.traffic else self.estimate.traffic

    @property
    def time(self) -> Time | None:
        return roofline(self.request, self.moved)

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
    say(f"compiling the train step for {request.topology.name}: {describe(request)}")
    train = compiled.train_step(request, partitioner)
    decode = None
    if train.memory is not None:
        say(f"compiled in {train.seconds:.0f} s; compiling the decoding program")
        decode = compiled.decoding(request, partitioner)
    return Plan(request, estimate(request), train, decode, candidates)
