"""Machine code whose registers are not written on every path is found, other code is not."""

from __future__ import annotations

import pytest
from machine_code import MachineCode, kv_loops, reads_before_writes, stores_before_wait


def code_of(*lines: str) -> MachineCode:
    """As `nvdisasm -c` prints it; a line that begins with a dot is a label."""
    return MachineCode.of_text(
        "\n".join(
            line if line.startswith(".") else f"        /*{16 * place:04x}*/  {line} ;"
            for place, line in enumerate(lines)
        )
    )


BEGIN = ("ULDC.64 UR4, c[0x0][0x208]", "@P0 BRA `(.L_x_1)")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((*BEGIN, "UMOV UR6, UR4", ".L_x_1:", "UIADD3 UR7, UR6, 0x2, URZ", "EXIT"), ["UIADD3"]),
        ((*BEGIN, "UMOV UR6, UR4", ".L_x_1:", "UIADD3 UR7, UR5, 0x2, URZ", "EXIT"), []),
        # what is behind an end is reached by the branch only
        ((*BEGIN, "EXIT", "UMOV UR6, UR9", ".L_x_1:", "EXIT"), []),
        # on the way round the loop it has been written, the first time not
        ((".L_x_1:", "UMOV UR7, UR6", "UMOV UR6, URZ", "@P0 BRA `(.L_x_1)", "EXIT"), ["UMOV"]),
        (("@P1 R2UR P0, UR6, R2", "SYNCS.EXCH.64 URZ, [UR6+0x386e0], URZ", "EXIT"), []),
        (("UMOV UR4, URZ", "UIADD3.64 UR6, UR4, 0x2, URZ", "EXIT"), ["UIADD3.64"]),
        (("ULDC.64 UR4, c[0x0][0x0]", "LDG.E R0, desc[UR4][R2.64]", "EXIT"), []),
        (("UMOV UR4, URZ", "LDG.E R0, desc[UR4][R2.64]", "EXIT"), ["LDG.E"]),
        # both operands of a product, the second one, and both again
        ((BEGIN[0], "HGMMA.64x64x16.F32.BF16 R88, gdesc[UR4], RZ, !UPT", "EXIT"), ["HGMMA"]),
        ((BEGIN[0], "HGMMA.64x64x16.F32.BF16 R24, R148, gdesc[UR2].tnspB, R24", "EXIT"), []),
        ((BEGIN[0], "HGMMA.64x64x16.F32.BF16 R24, R148, gdesc[UR4].tnspB, R24"), ["HGMMA"]),
    ],
)
def test_reads_before_writes(lines: tuple[str, ...], found: list[str]) -> None:
    reads = reads_before_writes(code_of(*lines))
    assert len(reads) == len(found)
    assert all(read.startswith(name) for read, name in zip(reads, found, strict=True))


def test_spills_are_counted_in_loops_that_multiply() -> None:
    lines = [
        "STL [R1], R2",
        ".L_x_1:",
        "HGMMA.64x64x16.F32.BF16 R88, gdesc[UR4], RZ, !UPT",
        "LDL R2, [R1]",
        "@P0 BRA `(.L_x_1)",
        ".L_x_2:",
        "@P0 BRA `(.L_x_2)",
        "EXIT",
    ]
    assert kv_loops(code_of(*lines)) == [(3, 1)]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (("ACQBULK", "STG.E [R2.64], R4", "EXIT"), 0),
        (("@P0 BRA `(.L_x_1)", "ACQBULK", ".L_x_1:", "STG.E [R2.64], R4", "EXIT"), 1),
        (("@P0 EXIT", "ACQBULK", "@P1 STG.E.64 [R2.64], R4", "EXIT"), 0),
        (("STS [R2], R4", "RED.E.ADD.STRONG.GPU [R2.64], R5", "ACQBULK", "EXIT"), 1),
    ],
)
def test_stores_before_the_wait_are_found(lines: tuple[str, ...], found: int) -> None:
    assert len(stores_before_wait(code_of(*lines))) == found
