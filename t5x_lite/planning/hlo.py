"""What a compiled program moves, read from its text: bytes of each kind of collective, and of the main memory.

XLA's own cost analysis counts the body of a scan once; here a loop's body counts as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in "sfuc" for bits in (32, 64, 128)
}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r"\s([a-z][\w\-]*)\(")
_NAMES = re.compile(r"%([\w.\-]+)")
# They name what is there already, or contain what is counted by itself.
_MOVES_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("copy-done", "partition-id", "iota", "opt-barrier", "async-start", "async-update"),
}

Computation = Mapping[str, "Instruction"]


@dataclasses.dataclass(frozen=True)
class Instruction:
    opcode: str
    result: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def names(self, role: str) -> str | None:
        """The computation that an attribute like `body` names."""
        match = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @property
    def arrays(self) -> list[re.Match]:
        """Of its result, those that it makes: the result of a start also names the operands, and counters."""
        found = list(_ARRAY.finditer(self.result))
        if self.opcode == "copy-start":
            return found[:1]
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            return found[len(self.operands) : 2 * len(self.operands)]
        return found

    @functools.cached_property
    def bytes(self) -> int:
        """Of what it makes in the main memory; a TPU's faster ones are the spaces 1 and up."""
        return sum(_size(array) for array in self.arrays if "S(" not in (array[3] or ""))


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over equal groups: how often one run has them, and the bytes that they hand out.

    `members` are the partitions of the first group. Of a reduce-scatter the bytes are those taken in.
    """

    kind: str
    members: tuple[int, ...]
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one run of a program on one device; `memory` is the bytes read from the main memory and written to it."""

    collectives: tuple[Collective, ...]
    memory: int

    def histogram(self) -> dict[str, int]:
        """How often each kind is run, by kind and size of its groups."""
        found = collections.Counter()
        for each in self.collectives:
            found[f"{each.kind} over {len(each.members)}"] += each.count
        return dict(sorted(found.items()))


def traffic(text: str, partitions: int) -> Traffic:
    """Reads the text of a program compiled for so many devices."""
    computations, entry = _parse(text)
    counts: collections.Counter = collections.Counter()
    sizes: collections.Counter = collections.Counter()
    memory = 0
    for name, times, fused in _runs(computations, entry):
        computation = computations[name]
        for each in computation.values():
            kind = each.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                size = sum(map(_size, each.arrays))  # wherever they are
                if name.startswith("all-reduce-scatter"):  # a TPU's reduce-scatter is a fusion of these
                    kind = "reduce-scatter"
                elif kind == "reduce-scatter":
                    size *= len(_members(each.attributes, partitions))
                key = kind, _members(each.attributes, partitions)
                counts[key] += times
                sizes[key] += times * size
            if not fused:
                memory += times * _moved(each, computation, computations)
    found = [Collective(kind, who, counts[kind, who], sizes[kind, who]) for kind, who in sorted(counts)]
    return Traffic(tuple(found), memory)


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            inside = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif inside is not None and (match := _INSTRUCTION.match(line)):
            inside[match[2]] = _instruction(match[3], bool(match[1]))
    return computations, entry


def _instruction(text: str, is_root: bool) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    # The result may be a tuple, and its layouts have parentheses of their own.
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.search(text, end)
    close = _closing(text, opcode.end() - 1)
    operands = tuple(_NAMES.findall(text[opcode.end() : close]))
    return Instruction(opcode[1], text[:end], operands, text[opcode.end() - 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _runs(computations: Mapping[str, Computation], entry: str) -> Iterator[tuple[str, int, bool]]:
    """Every computation that runs, how often, and whether it is the inside of a fusion."""
    waiting = [(entry, 1, False)]
    while waiting:
        name, times, fused = waiting.pop()
        yield name, times, fused
        for each in computations[name].values():
            if each.opcode == "while":
                waiting.append((each.names("body"), times * _trips(computations[each.names("condition")]), fused))
            elif each.opcode in ("fusion", "call", "async-start"):
                inner = each.names("calls") or each.names("to_apply")
                waiting.append((inner, times, fused or each.opcode == "fusion"))
            elif each.opcode == "conditional":
                # Which of them runs is not known: all are counted.
                branches = re.findall(r"(?:true_computation|false_computation)=%?([\w.\-]+)", each.attributes)
                if listed := re.search(r"branch_computations=\{([^}]*)\}", each.attributes):
                    branches += re.findall(r"[\w.\-]+", listed[1])
                waiting += [(branch, times, fused) for branch in branches]


def _trips(condition: Computation) -> int:
    """How often a counted loop runs: the number that its condition compares with; 1 where there is none."""
    numbers = [each.attributes for each in condition.values() if each.opcode == "constant"]
    return max((int(match[1]) for text in numbers if (match := re.match(r"\((\d+)\)", text))), default=1)


def _moved(each: Instruction, around: Computation, computations: Mapping[str, Computation]) -> int:
    """Bytes that an instruction reads and writes; of an array that it cuts a slice from, or puts one in, the slice."""
    if each.opcode in _MOVES_NOTHING or each.opcode.endswith("-done"):
        return 0
    operands = [around[name] for name in each.operands if name in around]
    if each.opcode == "dynamic-slice":
        return 2 * each.bytes
    if each.opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes
    if each.opcode != "fusion":
        return each.bytes + sum(operand.bytes for operand in operands)
    inside = computations[each.names("calls")]
    read = sum(_read(inside, number, operand.bytes) for number, operand in enumerate(operands))
    return read + _written(inside, each.bytes)


def _read(inside: Computation, number: int, whole: int) -> int:
    """What a fusion reads of its parameter of that number."""
    names = [n for n, i in inside.items() if i.opcode == "parameter" and i.attributes.startswith(f"({number})")]
    users = [i for i in inside.values() if names and names[0] in i.operands]
    if users and all(user.opcode == "dynamic-slice" for user in users):
        return min(whole, sum(user.bytes for user in users))
    if users and all(user.opcode == "dynamic-update-slice" and user.operands[0] == names[0] for user in users):
        return 0  # written in place
    return whole


def _written(inside: Computation, whole: int) -> int:
    root = next(each for each in inside.values() if each.is_root)
    if root.opcode == "dynamic-update-slice":
        return min(whole, inside[root.operands[1]].bytes)
    return whole


def _size(array: re.Match) -> int:
    count = math.prod(int(side) for side in array[2].split(",") if side)
    return int(count * _BYTES.get(array[1], 0))


def _members(attributes: str, partitions: int) -> tuple[int, ...]:
    """The first group of a collective, in each way that XLA writes groups; all partitions where it writes none."""
    ids = np.arange(partitions)
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(match[1]), int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, match[1].split(",")))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source = (tuple(map(int, part.split(","))) for part in match.group(1, 2))
        laid_out = np.arange(math.prod(source)).reshape(source)
        if match[3]:
            laid_out = laid_out.transpose(tuple(map(int, match[3].split(","))))
        return tuple(laid_out.reshape(-1, shape[-1])[0].tolist())
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        used = re.findall(r"'([^']+)'", match[2])
        if math.prod(axes.values()) == partitions and set(used) <= set(axes):
            cut = tuple(slice(None) if name in used else 0 for name in axes)
            return tuple(ids.reshape(tuple(axes.values()))[cut].reshape(-1).tolist())
    return tuple(ids.tolist())
