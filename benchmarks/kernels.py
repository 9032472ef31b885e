"""What a compiled program's kernels read, write and compute, off the text of the program that XLA has optimised.

XLA for GPU says nothing of this ahead of time, but its text says all: every operation that stands by itself is a
kernel, which reads its operands from memory and writes its results there; products stand in it, or in the computation
that it calls, with their shapes. A loop's body counts as often as the compiler knows it to run, else once, and of a
conditional every branch once: of the sampler that is one step, which calls the network with base and tuned weights.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
KIND = re.compile(r"([\w\-]+)\(")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TARGET = re.compile(r'custom_call_target="([^"]+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
LOGITS_OF = re.compile(r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]')  # [b h t s]
LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
# They move nothing: names for what is there, and what only calls.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "iota", "after-all", "opt-barrier"}
SLICES = {"slice", "dynamic-slice", "gather"}
CALLERS = {"while", "conditional", "call", "async-start"}
LOGITS = "bthd,bshd->bhts"  # models.attention's einsum of queries and keys, which fused kernels have not


class Operation(NamedTuple):
    """A line of the program."""

    name: str
    kind: str
    result: str  # its type, of arrays or a tuple of them
    operands: tuple[str, ...]
    inside: str  # the brackets: a parameter's number, a constant's value
    rest: str  # attributes


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one launch does."""

    name: str
    path: str  # op_name: of modules
    target: str  # of a custom call, "" without
    moved: int  # bytes read and written
    flop: Mapping[str, float]  # dtype -> floating-point operations of products and convolutions
    attention: float  # of these, in cuDNN's attention
    result: str

    def seconds(self, bandwidth: float, peak: Mapping[str, float]) -> float:
        """At the least: memory and matrix units each at full speed, the slower of both."""
        return max(self.moved / bandwidth, sum(flop / peak[dtype] for dtype, flop in self.flop.items()))


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of the arrays in a type."""
    found = ARRAY.findall(text)
    return [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in found if dtype in BYTES]


def size(text: str) -> int:
    """Bytes of a type."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in arrays(text))


def kernels(text: str) -> list[Kernel]:
    """All kernels of a program."""
    computations = dict(_computations(text))
    entry = next(line for line in text.splitlines() if line.startswith("ENTRY"))
    found = COMPUTATION.match(entry)
    assert found is not None, entry[:200]
    return list(_launched(computations, found[1]))


def _computations(text: str) -> Iterator[tuple[str, dict[str, Operation]]]:
    name, operations = "", dict[str, Operation]()
    for line in text.splitlines():
        if started := COMPUTATION.match(line):
            name, operations = started[1], {}
        elif line.startswith("}"):
            yield name, operations
        elif found := OPERATION.match(line):
            result, rest = _split_type(found[2])
            kind = KIND.match(rest)
            if kind is None:
                continue
            inside, after = _split_call(rest[kind.end() :])
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            operations[found[1]] = Operation(found[1], kind[1], result, operands, inside, after)


def _split_type(text: str) -> tuple[str, str]:
    """(the type, what follows): a tuple's type has blanks."""
    end = text.find(" ") if not text.startswith("(") else _closing(text, 0) + 1
    return text[:end], text[end:].lstrip()


def _split_call(text: str) -> tuple[str, str]:
    """(what stands in the brackets, what follows them). text: from behind the opening one."""
    end = _closing("(" + text, 0) - 1
    return text[:end], text[end + 1 :]


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text)


def _launched(computations: Mapping[str, Mapping[str, Operation]], name: str) -> Iterator[Kernel]:
    operations = computations[name]
    for operation in operations.values():
        if operation.kind in CALLERS:
            times = int(trips[1]) if (trips := TRIPS.search(operation.rest)) else 1
            for called in _called(operation) * times:
                yield from _launched(computations, called)
        elif operation.kind not in FREE:
            yield _kernel(computations, operations, operation)


def _called(operation: Operation) -> list[str]:
    branches = BRANCHES.search(operation.rest)
    return CALLED.findall(operation.rest) + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])


def _kernel(
    computations: Mapping[str, Mapping[str, Operation]], operations: Mapping[str, Operation], operation: Operation
) -> Kernel:
    target, path = TARGET.search(operation.rest), OP_NAME.search(operation.rest)
    flop: dict[str, float] = {}
    inside = [(operations, operation)]
    for name in _nested(computations, operation):
        inside += [(computations[name], each) for each in computations[name].values()]
    attention = 0.0
    for within, each in inside:
        if counted := _flop(within, each):
            dtype, count = counted
            flop[dtype] = flop.get(dtype, 0.0) + count
            attention += count if "fmha" in each.rest else 0.0
    return Kernel(
        name=operation.name,
        path=path[1] if path else "",
        target=target[1] if target else "",
        moved=_moved(computations, operations, operation),
        flop=flop,
        attention=attention,
        result=operation.result,
    )


def _moved(
    computations: Mapping[str, Mapping[str, Operation]], operations: Mapping[str, Operation], operation: Operation
) -> int:
    """Bytes read and written. Of what is only sliced, the slice; of what is updated in its place, the update."""
    fused = computations[_called(operation)[0]] if operation.kind == "fusion" else {}
    numbers = {each.inside: name for name, each in fused.items() if each.kind == "parameter"}
    read: dict[str, int] = {}
    for i, name in enumerate(operation.operands):
        users = list(_users(fused, numbers[str(i)])) if fused else [(operation, i)]
        parts = [_part(fused or operations, *user) for user in users]
        whole = size(operations[name].result)
        read[name] = max(read.get(name, 0), whole if None in parts else min(whole, sum(filter(None, parts))))
    root = list(fused.values())[-1] if fused else operation
    written = size(operation.result)
    if root.kind == "dynamic-update-slice":
        written = size((fused or operations)[root.operands[1]].result)
    return sum(read.values()) + written


def _users(fused: Mapping[str, Operation], name: str) -> Iterator[tuple[Operation, int]]:
    """(operation, place among its operands) of all that read a value, whatever it is called on the way."""
    for each in fused.values():
        for i, operand in enumerate(each.operands):
            if operand == name:
                yield from _users(fused, each.name) if each.kind == "bitcast" else [(each, i)]


def _part(operations: Mapping[str, Operation], user: Operation, place: int) -> int | None:
    """Bytes of an operand that an operation reads, None: all."""
    if place == 0 and user.kind in SLICES:
        return size(user.result)
    return 0 if place == 0 and user.kind == "dynamic-update-slice" else None


def _nested(computations: Mapping[str, Mapping[str, Operation]], operation: Operation) -> Iterator[str]:
    """The computations that an operation calls, and those within them."""
    for name in _called(operation):
        yield name
        for each in computations[name].values():
            yield from _nested(computations, each)


def _flop(operations: Mapping[str, Operation], operation: Operation) -> tuple[str, float] | None:
    """(dtype of the operands, operations) of a product, a convolution or an attention; None of anything else."""
    shapes = [array for name in operation.operands[:2] for array in arrays(operations[name].result)[:1]]
    if operation.kind == "dot":
        (dtype, left), contracted = shapes[0], CONTRACTED.search(operation.rest)
        assert contracted is not None
        length = math.prod(left[int(i)] for i in contracted[1].split(",") if i)
        return dtype, 2.0 * length * math.prod(arrays(operation.result)[0][1])
    if operation.kind == "convolution" or "__cudnn$conv" in operation.rest:
        (dtype, _), (_, kernel) = shapes[0], shapes[1]
        labels = LABELS.search(operation.rest)
        assert labels is not None
        per_output = math.prod(kernel) // kernel[labels[2].index("o")]
        return dtype, 2.0 * per_output * math.prod(arrays(operation.result)[0][1])
    if logits := LOGITS_OF.search(operation.rest):
        (dtype, queries), products = shapes[0], 10.0 if "Backward" in operation.rest else 4.0
        return dtype, products * math.prod(int(n.strip(' "')) for n in logits[1].split(",")) * queries[-1]
    return None
