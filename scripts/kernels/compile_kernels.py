"""Compile every kernel for GPUs that this machine need not have, and say what they cost.

    python scripts/kernels/compile_kernels.py    # sm_80, sm_90, sm_100; all shapes
    python scripts/kernels/compile_kernels.py --arch 90 --head-dim 128 --dtype bf16 --group 4

The kernels' own launchers are called with tensors that have no memory, and the arguments they pass
are specialised as Triton's JIT would, so what is compiled here is what a server would run. Exit
status 1 if a KV loop spills, or a kernel asks for more shared memory or registers than its grid
assumes, or lost its pipelined loads or its tensor-core instructions, or waits for each of them, or
reads a uniform register that ptxas forgot to write on one of the paths there, or is launched early
and stores something before the kernel before it has ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

# a process either interprets Triton or compiles it
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from library.options import head_dims
from machine_code import MachineCode, kv_loops, reads_before_writes, stores_before_wait
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.runtime.jit import JITFunction, create_function_from_signature

from sglang_codec.attention import prefix_shared_attention, update_lengths
from sglang_codec.attention_shape import AttentionShape
from sglang_codec.buffers import PlanBuffers
from sglang_codec.kernels.kv_index import append_slots, gather_slots
from sglang_codec.kernels.kv_store import store_kv
from sglang_codec.kernels.launch import LaunchConfig, launch_config
from sglang_codec.planning.plan import PlanCapacity, PlanLayout
from sglang_codec.shape_support import GPU_HEAD_DIMS

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
KV_DTYPES = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
_SHORT = {name: short for short, name in (DTYPES | KV_DTYPES).items()}
NUM_KV_HEADS = 8
ANY_SHAPE = AttentionShape.plain(4 * NUM_KV_HEADS, NUM_KV_HEADS, 128)
_BATCH = 64
_POOL_SLOTS = 4096
_SPILL_LIMIT = 8  # instructions in KV loops of some 600 each
_ALIKE = ("por", "store_kv")  # kernels all of whose warps do the same


@dataclass(frozen=True)
class Gpu:
    """What one multiprocessor of an architecture offers."""

    arch: int
    num_sms: int
    shared_per_sm: int
    shared_per_block: int

    @property
    def capability(self) -> tuple[int, int]:
        return divmod(self.arch, 10)


_REGISTERS_PER_SM = 65536
# CUDA reserves 1 KB of shared memory per resident block
_RESERVED_SHARED = 1024
GPUS = {
    gpu.arch: gpu
    for gpu in (
        Gpu(80, 108, 164 << 10, 163 << 10),
        Gpu(86, 84, 100 << 10, 99 << 10),
        Gpu(89, 128, 100 << 10, 99 << 10),
        Gpu(90, 132, 228 << 10, 227 << 10),
        Gpu(100, 148, 228 << 10, 227 << 10),
        Gpu(120, 170, 100 << 10, 99 << 10),
    )
}


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch."""

    kernel: JITFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__.strip("_").removesuffix("_kernel")


def column(title: str, spec: str) -> Any:
    """A field that the table shows."""
    return dataclasses.field(metadata={"title": title, "spec": spec})


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one compiled kernel needs, and what is wrong with it."""

    kernel: str = column("kernel", "<14")
    arch: int = column("sm", ">4")
    dtype: str = column("type", ">5")
    kv_dtype: str = column("KV", ">5")
    head_dim: str = column("D", ">7")
    group: int = column("G", ">3")
    tiles: str = column("tiles", "<30")
    num_warps: int = column("warps", ">5")
    registers: int = column("regs", ">5")
    spill_bytes: int = column("spill", ">6")
    stack_bytes: int
    shared_bytes: int = column("shared", ">7")
    fitting_ctas: int = column("fit", ">4")
    ctas_per_sm: int = column("want", ">4")
    async_copies: int = column("cp.async", ">8")
    in_flight: tuple[int, ...] = column("in flight", ">9")
    loop_instructions: tuple[int, ...] = column("instructions", ">19")
    tensor_core: str = column("tensor core", "<16")
    problems: tuple[str, ...]


_COLUMNS = [field for field in dataclasses.fields(Report) if field.metadata]


def record(launch: Callable[[], None]) -> list[Launch]:
    """The kernels that `launch()` launches, in order; none runs."""
    seen: list[Launch] = []

    def keep(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append(Launch(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", keep):
        launch()
    return seen


def tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def pool_buffer(shape: AttentionShape, dim: int) -> torch.Tensor:
    dtype = getattr(torch, shape.kv_dtype)
    return tensor(_POOL_SLOTS, NUM_KV_HEADS, dim, dtype=dtype)


def scales(shape: AttentionShape) -> dict[str, float]:
    return {"k_scale": 0.5, "v_scale": 0.25} if shape.is_fp8 else {}


def plan_buffers(gpu: Gpu, config: LaunchConfig, shape: AttentionShape) -> PlanBuffers:
    slots = config.num_slots(gpu.num_sms, NUM_KV_HEADS)
    classes = len(config.execution_order)
    capacity = PlanCapacity(_BATCH, 512, 512, _POOL_SLOTS)
    layout = PlanLayout(capacity, classes, slots, has_bundles=config.bundle is not None)
    return PlanBuffers(layout, shape, torch.device("meta"))


def attention_launches(
    gpu: Gpu,
    config: LaunchConfig,
    shape: AttentionShape,
    *,
    return_lse: bool,
    has_sinks: bool = False,
) -> tuple[Launch, Launch]:
    """PAC and POR."""
    heads, dtype = shape.num_qo_heads, getattr(torch, shape.dtype)
    dims, rows = (shape.key_dim, shape.value_dim), _BATCH * shape.query_rows
    q, out = (tensor(rows, heads, dim, dtype=dtype) for dim in dims)
    k, v = (pool_buffer(shape, dim) for dim in dims)
    lse = tensor(rows, heads, dtype=torch.float32) if return_lse else None
    buffers = plan_buffers(gpu, config, shape)
    sinks = tensor(heads, dtype=torch.bfloat16) if has_sinks else None
    of_layer = {"sm_scale": 0.088, "sinks": sinks, "soft_cap": shape.soft_cap} | scales(shape)
    of_launch = of_layer | {"config": config, "lse": lse}
    pac, por = record(lambda: prefix_shared_attention(q, k, v, out, buffers, **of_launch))
    return pac, por


def store_launch(config: LaunchConfig, shape: AttentionShape) -> Launch:
    dtype = getattr(torch, shape.dtype)
    new = tensor(_BATCH, NUM_KV_HEADS, shape.key_dim, dtype=dtype)
    buffer = pool_buffer(shape, shape.key_dim)
    slots = tensor(_BATCH, dtype=torch.int64)
    early = config.early_launch and config.warp_roles
    of_launch = {"early_launch": early} | scales(shape)
    return record(lambda: store_kv(new, new, buffer, buffer, slots, **of_launch))[0]


def per_step_launches(
    gpu: Gpu, config: LaunchConfig, shape: AttentionShape = ANY_SHAPE
) -> list[Launch]:
    buffers, windowed = plan_buffers(gpu, config, shape), shape.window is not None
    index, rows = buffers.kv_index, tensor(_BATCH, dtype=torch.int64)
    req_to_token = tensor(_BATCH, 131072, dtype=torch.int32)
    base = buffers.layout.append_base

    def launch() -> None:
        gather_slots(index, req_to_token, rows, tensor(16, 4, dtype=torch.int32), longest=5000)
        lengths = buffers.row_lengths
        of_plan = {"append_base_offset": base, "windowed": windowed}
        new = tensor(_BATCH * shape.query_rows, dtype=torch.int64)
        of_plan["query_rows"] = shape.query_rows
        append_slots(index, lengths, buffers.plan, rows, new, **of_plan)
        update_lengths(buffers)

    return record(launch)


def compile_launch(launch: Launch, arch: int) -> CompiledKernel:
    """A launch compiled with the specialisation that the JIT would choose."""
    kernel, target = launch.kernel, GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    kwargs = {**launch.kwargs, "debug": False}
    bound, specialization, options = bind(*launch.args, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    make = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = make(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=options.__dict__)


def copies_in_flight(ttgir: str) -> tuple[int, ...]:
    """For each loop over KV, in program order, the copies it leaves pending while it computes.

    A pipelined loop waits for the oldest of its asynchronous copies only; 0 is load, wait, compute.
    The loop that repeats a bundle with a NaN in it has no asynchronous copies and is left out.
    """
    left = []
    for body in ttgir.split("scf.for")[1:]:
        body = body.split("scf.yield")[0]
        if re.search(r"tt\.dot |warp_group_dot |tc_gen5_mma ", body):
            waits = re.findall(r"async_wait .*?num = (\d+)", body)
            if waits:
                left.append(min(map(int, waits)))
    return tuple(left)


def assemble(ptx: str, arch: int) -> dict[str, int]:
    """What ptxas says about registers, spills and the stack, with Triton's own flags."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [get_ptxas(arch).path, "-lineinfo", "-v", "--regAllocOptLevel=2"]
        command += [f"--gpu-name={sm_arch_from_capability(arch)}", str(source)]
        done = subprocess.run(
            [*command, "-o", str(Path(folder, "kernel.cubin"))], capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"ptxas failed for sm_{arch}:\n{done.stderr}")

    def figure(pattern: str) -> int:
        # device functions that were not inlined are listed beside the kernel
        return max((int(number) for number in re.findall(pattern, done.stderr)), default=0)

    return {
        "registers": figure(r"Used (\d+) registers"),
        "spill_bytes": figure(r"(\d+) bytes spill stores") + figure(r"(\d+) bytes spill loads"),
        "stack_bytes": figure(r"(\d+) bytes stack frame"),
        "serialized": len(re.findall("wgmma.mma_async instructions are serialized", done.stderr)),
    }


def examine(
    launch: Launch,
    gpu: Gpu,
    *,
    shape: AttentionShape | None = None,
    tiles: str = "-",
    ctas_per_sm: int = 1,
    spill_limit: int = _SPILL_LIMIT,
) -> Report:
    """Compile a launch and say what it costs."""
    compiled = compile_launch(launch, gpu.arch)
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    used = assemble(ptx, gpu.arch)
    serialized = used.pop("serialized")
    num_warps = int(re.search(r"\.reqntid (\d+)", ptx)[1]) // 32  # of all roles
    # registers are handed out to warps in units of 256
    per_cta = -(-used["registers"] * 32 // 256) * 256 * num_warps
    fitting = min(gpu.shared_per_sm // (shared + _RESERVED_SHARED), _REGISTERS_PER_SM // per_cta)
    cores = sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", ptx)))
    copies = len(re.findall(r"cp\.async\.c[ag]\.shared", ptx))

    problems = ["the compiler waits for every matrix product"] if serialized else []
    code = MachineCode.of_cubin(compiled.asm["cubin"])
    if unwritten := reads_before_writes(code):
        problems.append(f"{len(unwritten)} reads of registers that nothing wrote: {unwritten[0]}")
    if launch.kwargs.get("launch_pdl"):
        if "griddepcontrol.wait" not in ptx:
            problems.append("launched early, and does not wait for the kernel before")
        elif launch.name in _ALIKE and (early := stores_before_wait(code)):
            problems.append(f"{len(early)} stores before the kernel before has ended: {early[0]}")
    loops = kv_loops(code)
    in_loops = sum(spills for _, spills in loops)
    if in_loops > spill_limit:
        problems.append(f"{in_loops} spilling instructions in KV loops (at most {spill_limit})")
    if shared > gpu.shared_per_block:
        problems.append(f"{shared} bytes of shared memory, a block has {gpu.shared_per_block}")
    elif fitting < ctas_per_sm:
        problems.append(
            f"{fitting} blocks fit a multiprocessor, the grid is made for {ctas_per_sm}"
        )
    if launch.name.startswith("pac"):
        if not cores:
            problems.append("no tensor-core instruction")
        if not copies:
            problems.append("no asynchronous copy: loads are not pipelined")
    return Report(
        kernel=launch.name,
        arch=gpu.arch,
        dtype=_SHORT[shape.dtype] if shape else "-",
        kv_dtype=_SHORT[shape.kv_dtype] if shape else "-",
        head_dim=shape.dims if shape else "-",
        group=shape.group if shape else 0,
        tiles=tiles,
        num_warps=num_warps,
        shared_bytes=shared,
        ctas_per_sm=ctas_per_sm,
        fitting_ctas=fitting,
        async_copies=copies,
        in_flight=copies_in_flight(compiled.asm["ttgir"]),
        loop_instructions=tuple(length for length, _ in loops),
        tensor_core="+".join(cores) or "-",
        problems=tuple(problems),
        **used,
    )


def reports(options: argparse.Namespace) -> Iterator[Report]:
    """In the order of the options, compiled by as many processes as there are cores."""
    jobs = [*_jobs(options)]
    # forked ones know the jobs, of which some parts cannot be sent
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), _take, (jobs,)) as pool:
        yield from pool.imap(_examine_nth, range(len(jobs)))


_taken: list[partial[Report]] = []


def _take(jobs: list[partial[Report]]) -> None:
    _taken.extend(jobs)


def _examine_nth(number: int) -> Report:
    return _taken[number]()


def _jobs(options: argparse.Namespace) -> Iterator[partial[Report]]:
    for gpu in (GPUS[arch] for arch in options.arch):
        for dtype, dims, group in itertools.product(options.dtype, options.head_dim, options.group):
            dtypes = DTYPES[dtype], KV_DTYPES.get(options.kv_dtype, DTYPES[dtype])
            shape = AttentionShape(NUM_KV_HEADS * group, NUM_KV_HEADS, *dims, *dtypes)
            of_layer = {"soft_cap": options.soft_cap, "window": options.window_left}
            shape = dataclasses.replace(shape, **of_layer, query_rows=options.query_rows)
            config = launch_config(gpu.capability, shape, warp_roles=not options.no_warp_roles)
            config = dataclasses.replace(config, exact_weights=not options.rounded_weights)
            for return_lse in (False, True):
                pac, por = attention_launches(
                    gpu, config, shape, return_lse=return_lse, has_sinks=options.sinks
                )
                if return_lse == options.lse:
                    tiles, ctas = tile_names(config), config.ctas_per_sm
                    of_pac = {"shape": shape, "tiles": tiles, "ctas_per_sm": ctas}
                    yield partial(examine, pac, gpu, **of_pac)
                tiles = "with LSE" if return_lse else "without LSE"
                yield partial(examine, por, gpu, shape=shape, tiles=tiles)
            if shape.key_dim == shape.value_dim:
                yield partial(examine, store_launch(config, shape), gpu, shape=shape)
        of_step = {"window": options.window_left, "query_rows": options.query_rows}
        shape = dataclasses.replace(ANY_SHAPE, **of_step)
        for launch in per_step_launches(gpu, launch_config(gpu.capability, shape), shape):
            yield partial(examine, launch, gpu)


def tile_names(config: LaunchConfig) -> str:
    """The tiles in the order of the kernel; b is the bundles'."""
    names = (f"{rows}x{kv}{'b' * own}" for _, rows, kv, own in config.execution_order)
    return f"{' '.join(names)} /{config.stages}"


def print_row(report: Report) -> None:
    cells = []
    for field in _COLUMNS:
        value = getattr(report, field.name)
        if isinstance(value, tuple):
            value = "/".join(map(str, value)) or "-"
        cells.append(format(str(value), field.metadata["spec"]))
    print(" ".join(cells), "; ".join(report.problems) or "ok", flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(GPUS), default=[80, 90, 100])
    dims = [head_dims(text) for text in GPU_HEAD_DIMS]
    about = "of keys and values, as 128 or 192/128"
    parser.add_argument("--head-dim", type=head_dims, nargs="+", default=dims, help=about)
    parser.add_argument("--dtype", nargs="+", choices=sorted(DTYPES), default=list(DTYPES))
    parser.add_argument("--kv-dtype", choices=sorted(KV_DTYPES), help="default: as --dtype")
    parser.add_argument("--group", type=int, nargs="+", default=[1, 4, 8], help="GQA group sizes")
    parser.add_argument("--lse", action="store_true", help="compile the variant that returns LSE")
    parser.add_argument("--sinks", action="store_true", help="of layers with attention sinks")
    parser.add_argument("--soft-cap", type=float, help="of layers with this cap on their scores")
    parser.add_argument(
        "--window-left", type=int, help="of layers whose rows see so many tokens before their own"
    )
    parser.add_argument("--query-rows", type=int, default=1, help="of each request")
    parser.add_argument(
        "--no-warp-roles", action="store_true", help="the kernels for a Triton without Gluon"
    )
    about = "round the softmax weights of small groups too, as beside FA3"
    parser.add_argument("--rounded-weights", action="store_true", help=about)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the report here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    print(f"triton {triton.__version__}, {NUM_KV_HEADS} KV heads")
    print("tiles: rows x KV tokens, b: of bundles, / stages; sizes in bytes;")
    print("fit, want: blocks per multiprocessor;")
    print("in flight: copies that each KV loop leaves pending while it computes;")
    print("instructions: of each KV loop in machine code (a bundle has a second one)")
    titles = (format(field.metadata["title"], field.metadata["spec"]) for field in _COLUMNS)
    print(" ".join(titles), "verdict")
    done = []
    for report in reports(options):
        print_row(report)
        done.append(report)
    failed = [report for report in done if report.problems]
    print(f"{len(done)} kernels compiled, {len(failed)} with problems")
    if options.json is not None:
        rows = [dataclasses.asdict(report) for report in done]
        options.json.write_text(
            json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1)
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
