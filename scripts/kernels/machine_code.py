"""What ptxas made of a kernel, read from its disassembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

_LONGEST_KV_LOOP = 2000  # instructions; more is a loop over tasks
# two uniform registers; on Hopper a matrix product names those of both operands, of which the first
# is not used if that operand is in registers
_DESCRIPTOR = re.compile(r"(gdesc|desc)\[UR(\d+)\]")
_WAITS = "ACQBULK"  # griddepcontrol.wait
_STORES = re.compile(r"\b(STG|RED|ATOMG?)\b")
_UNIFORM = re.compile(r"\bUR(\d+)\b")


@dataclass(frozen=True)
class MachineCode:
    """The instructions of a kernel, and where its labels stand among them."""

    instructions: tuple[str, ...]
    places: dict[str, int]

    @classmethod
    def of_cubin(cls, cubin: bytes) -> MachineCode:
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder, "kernel.cubin")
            binary.write_bytes(cubin)
            command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(binary)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return cls.of_text(text)

    @classmethod
    def of_text(cls, text: str) -> MachineCode:
        """Of what `nvdisasm -c` prints."""
        instructions: list[str] = []
        places: dict[str, int] = {}
        for line in text.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                places[label[1]] = len(instructions)
            elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
                instructions.append(instruction[1].strip())
        return cls(tuple(instructions), places)


def kv_loops(code: MachineCode) -> list[tuple[int, int]]:
    """Of each loop that multiplies matrices: its instructions, and how many of them spill."""
    loops = []
    for last, instruction in enumerate(code.instructions):
        target = re.search(r"BRA.*?(\.L_x_\d+)", instruction)
        if target and code.places.get(target[1], last) < last:
            loops.append((code.places[target[1]], last))
    # waiting for a barrier is a loop too, and its end may be far away from its beginning
    loops = [(a, b) for a, b in loops if b - a < _LONGEST_KV_LOOP]
    loops = [(a, b) for a, b in loops if any("MMA" in x for x in code.instructions[a : b + 1])]
    found = []
    for first, last in loops:
        is_innermost = not any(
            first <= a and b <= last for a, b in loops if (a, b) != (first, last)
        )
        body = code.instructions[first : last + 1]
        if is_innermost:
            spills = sum("STL" in instruction or "LDL" in instruction for instruction in body)
            found.append((len(body), spills))
    return found


def reads_before_writes(code: MachineCode) -> list[str]:
    """Instructions that a path reaches on which nothing wrote a uniform register that they read.

    ptxas 12.8 has shared part of an address between two loops, computed it in front of the one, and
    so on one of two paths to the other only. A write under a predicate counts as one.
    """
    steps = [_step(code, index) for index in range(len(code.instructions))]
    written: list[frozenset[int] | None] = [None] * len(steps)
    if steps:
        written[0] = frozenset()
    work = [0] if steps else []
    while work:
        index = work.pop()
        after = written[index] | steps[index].writes
        for following in steps[index].followers:
            before = written[following]
            known = after if before is None else before & after
            if known != before:
                written[following] = known
                work.append(following)
    return [
        instruction
        for instruction, step, before in zip(code.instructions, steps, written, strict=True)
        if before is not None and step.reads - before
    ]


def stores_before_wait(code: MachineCode) -> list[str]:
    """Stores to global memory that a path reaches without having waited for the kernel before.

    Of a kernel whose warps all do the same: where roles part, one waits for all.
    """
    found, seen, work = [], set(), [0] if code.instructions else []
    while work:
        index = work.pop()
        instruction = code.instructions[index]
        if index in seen or _WAITS in instruction:
            continue
        seen.add(index)
        if _STORES.search(instruction):
            found.append(instruction)
        work.extend(_step(code, index).followers)
    return found


@dataclass(frozen=True)
class _Step:
    """Uniform registers that an instruction reads and writes, and the instructions it leads to."""

    reads: frozenset[int]
    writes: frozenset[int]
    followers: tuple[int, ...]


def _step(code: MachineCode, index: int) -> _Step:
    text = code.instructions[index]
    predicate = re.match(r"@!?U?P\w+\s+", text)
    operation, _, operands = text[predicate.end() if predicate else 0 :].partition(" ")
    following = (index + 1,) if index + 1 < len(code.instructions) else ()
    if operation.startswith("BRA"):
        target = code.places[re.search(r"\.L_x_\d+", operands)[0]]
        is_conditional = predicate or re.match(r"!?U?P\d", operands)
        followers = (target, *(following if is_conditional else ()))
    elif operation.startswith("EXIT"):
        followers = following if predicate else ()
    else:
        followers = following

    reads: set[int] = set()
    for kind, number in _DESCRIPTOR.findall(operands):
        first = int(number)
        is_for_both = kind == "gdesc" and "GMMA" in operation
        is_first_used = not re.match(r"R\d+, R\d+, gdesc", operands)
        reads.update(range(first if is_first_used else first + 2, first + 2 + 2 * is_for_both))
    registers = [int(number) for number in _UNIFORM.findall(_DESCRIPTOR.sub("", operands))]
    writes: set[int] = set()
    # predicates may stand in front of the register that is written
    if re.match(r"(!?U?P[\dT]+, )*UR\d", operands):
        width = 4 if ".128" in operation else 2 if re.search(r"\.64|\.WIDE", operation) else 1
        writes.update(range(registers[0], registers[0] + width))
        registers = registers[1:]
    for number in registers:
        reads.update((number, number + (operation.startswith("U") and ".64" in operation)))
    return _Step(frozenset(reads), frozenset(writes), followers)
