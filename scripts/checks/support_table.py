"""Write docs/support.md and README's table: what the start-up checks say of much-served models.

    python scripts/checks/support_table.py               # the whole page
    python scripts/checks/support_table.py llama31_8b    # only show some rows

Needs no GPU and no weights: SGLang's scheduler builds each model class on the CPU, from a
configuration with the true head counts and tiny hidden sizes (`tests/data/models`, which
`index.json` lists), and the checks run on it as if it were on an H100 with bfloat16. Of classes
that do not build on a CPU the attention layers are made by hand.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from library.options import parser_of

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "data" / "models"
PAGE = ROOT / "docs" / "support.md"
README = ROOT / "README.md"
MARKS = ("<!-- models, by scripts/checks/support_table.py -->\n", "<!-- end of models -->\n")

# before Triton is imported
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SPECULATION = """
## Speculative decoding

Chains of drafts are verified for every row above whose layers have full attention and at most 64
query heads per KV head and request: `n` drafted tokens times the heads of a group, `n` up to 16.
Layers with a window, or with more heads than that, are verified by SGLang's own backend.
Linear layers (Qwen3-Next, Qwen3.5) are SGLang's, which keeps their states for each drafted token.

- EAGLE, EAGLE3, NEXTN (MTP) and STANDALONE: with `--speculative-eagle-topk 1`
- DFLASH: as it is
- NGRAM: with `--speculative-ngram-max-bfs-breadth 1`
- refused: draft trees, `--speculative-adaptive`, DSPARK, UNO and FROZEN_KV_MTP (Gemma 4)
"""

# what SGLang chooses on a GPU may not be had on a CPU; this it takes for nearly all models
PREFILL_BACKEND = "triton"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the page; `served` and `layers` count attention layers."""

    family: str
    shape: str
    served: int
    layers: int
    why: str
    hand_made: bool = False

    @property
    def verdict(self) -> str:
        if self.served == 0:
            return "refused"
        return "served" if self.served == self.layers else f"{self.served} of {self.layers} layers"

    @property
    def line(self) -> str:
        mark = " *" if self.hand_made else ""
        return f"| {self.family}{mark} | {self.shape} | {self.verdict} | {self.why} |"


def main() -> None:
    index = json.loads((MODELS / "index.json").read_text())
    parser, known = parser_of(__doc__), [entry["name"] for entry in index]
    parser.add_argument("names", nargs="*", metavar="MODEL", help=", ".join(known))
    names = parser.parse_args().names
    if unknown := set(names) - set(known):
        parser.error(f"unknown models: {', '.join(sorted(unknown))}; --help lists them")
    rows = [row_of(entry) for entry in index if not names or entry["name"] in names]
    if names:
        print("\n".join(row.line for row in rows))
    else:
        PAGE.write_text(page(rows))
        before, rest = README.read_text().split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        README.write_text(MARKS[0].join((before, summary(rows) + MARKS[1] + after)))


def row_of(entry: dict[str, Any]) -> Row:
    """Check one model in a process of its own: a process has room for one scheduler."""
    prepare()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        answer: dict[str, Any] = {}
        try:
            if "layers" in entry:
                answer = judge(hand_made_runner(entry))
            else:
                os.environ["SGLANG_CODEC_PREFILL_BACKEND"] = entry.get("prefill", PREFILL_BACKEND)
                build(json.loads((MODELS / f"{entry['name']}.json").read_text()), writing)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        reply(writing, answer)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.loads(pipe.read() or "null")
    os.waitpid(child, 0)
    if answer is None:
        raise RuntimeError(f"{entry['name']} could not be built, see above; describe it by hand")
    return Row(entry["family"], **answer, hand_made="layers" in entry)


def prepare() -> None:
    """Import what all children need, once."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from inproc_scheduler import _load_plugins

    _load_plugins()
    import sglang.srt.managers.scheduler  # noqa: F401


def reply(pipe: int, answer: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(answer).encode())
    os._exit(0)


def build(config: dict[str, Any], pipe: int) -> None:
    """Let SGLang build the model; where it asks for the decode backend, judge and leave."""
    from inproc_scheduler import InprocScheduler
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    ATTENTION_BACKENDS["codec"] = lambda runner: reply(pipe, judge(as_on_a_gpu(runner)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        InprocScheduler(
            folder,
            dtype="bfloat16",
            max_total_tokens=2048,
            max_running_requests=4,
            context_length=1024,
            log_level="error",
        )


def as_on_a_gpu(runner: Any) -> SimpleNamespace:
    import torch

    same = ("use_mla_backend", "model", "model_config", "token_to_kv_pool", "server_args")
    kv_dtype = runner.kv_cache_dtype
    return gpu_runner(
        **{name: getattr(runner, name) for name in same},
        layer_info=getattr(runner, "layer_info", None),
        kv_cache_dtype=torch.bfloat16 if kv_dtype == torch.float32 else kv_dtype,
    )


def hand_made_runner(entry: dict[str, Any]) -> SimpleNamespace:
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache import memory_pool

    layers = []
    for group in entry["layers"]:
        (heads, kv_heads, dim), count = group["shape"], group.get("count", 1)
        more = {name: group[name] for name in group if name not in ("shape", "count", "set")}
        for _ in range(count):
            where = {"num_kv_heads": kv_heads, "layer_id": len(layers)}
            layers.append(RadixAttention(heads, dim, 1.0, **where, **more))
            vars(layers[-1]).update(group.get("set", {}))  # as models do afterwards
    pool = getattr(memory_pool, entry.get("pool", "MHATokenToKVPool"))
    return gpu_runner(
        use_mla_backend=entry.get("mla", False),
        model=torch.nn.ModuleList(layers),
        model_config=SimpleNamespace(**entry.get("config", {})),
        kv_cache_dtype=getattr(torch, entry.get("kv_dtype", "bfloat16")),
        # made without its buffers: only its class is looked at
        token_to_kv_pool=pool.__new__(pool),
        server_args=SimpleNamespace(),
    )


def gpu_runner(**more: Any) -> SimpleNamespace:
    """What the checks read of a model runner on a GPU."""
    import torch

    where = {"device": "cuda", "gpu_id": 0, "is_draft_worker": False, "dtype": torch.bfloat16}
    return SimpleNamespace(**where, **more)


def judge(runner: Any) -> dict[str, Any]:
    """What `factory` would do with this model runner."""
    import torch

    from sglang_codec.attention_layers import attention_layers
    from sglang_codec.layer_groups import LayerGroups, shape_of
    from sglang_codec.refusals import UnsupportedConfiguration, check_supported

    torch.cuda.get_device_capability = lambda *_: (9, 0)
    layers = {layer.layer_id: layer for layer in attention_layers(runner.model)}
    shapes = Counter(
        f"{shape.num_qo_heads}/{shape.num_kv_heads} d{shape.dims}"
        for shape in (shape_of(layer, runner) for layer in layers.values())
    )
    answer = {"shape": ", ".join(shapes) or "-", "served": 0, "layers": len(layers)}
    try:
        check_supported(runner)
        support = LayerGroups.of(runner)
    except UnsupportedConfiguration as refusal:
        text = str(refusal).removeprefix("codec: ")
        # of layers of which none is left: why, in brackets
        if " can use codec (" in text:
            return answer | {"why": text.split(" can use codec (")[1].split("); choose ")[0]}
        return answer | {"why": text.split("; ")[0].split(", codec ")[0]}
    reasons = Counter(support.delegated.values())
    why = ", ".join(f"{count} delegated: {reason}" for reason, count in sorted(reasons.items()))
    return answer | {"served": len(layers) - len(support.delegated), "why": why}


def page(rows: list[Row]) -> str:
    from importlib.metadata import version

    lines = "\n".join(row.line for row in rows)
    verdicts = Counter(
        "served in full" if row.verdict == "served" else "refused" if not row.served else "in part"
        for row in rows
    )
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    return f"""# Supported models

Written by `scripts/checks/support_table.py` with SGLang {version("sglang")}: what codec's
start-up checks say of each model with a bfloat16 KV cache (some rows with fp8), on one H100,
without speculative decoding. Shapes are query heads / KV heads and head dimension, before tensor
parallelism. A layer that is not served is decoded by SGLang's own backend, beside the others. What
is refused is refused when the server starts. {len(rows)} models: {counts}.

Rows marked * were checked with attention layers made by hand, since SGLang does not build their
class on a CPU. Arguments that show only in a call are looked for in a dummy decode step at
start-up, which this page does not run; those of these models (sinks of gpt-oss) are served.

| model | heads | codec | why |
|---|---|---|---|
{lines}
{SPECULATION}"""


def summary(rows: list[Row]) -> str:
    """README's table: the models by what becomes of them."""
    groups: dict[str, list[str]] = {"served": [], "in part, the rest by SGLang": [], "refused": []}
    for row in rows:
        in_part = "in part, the rest by SGLang"
        groups[row.verdict if row.verdict in groups else in_part].append(row.family)
    lines = [f"| {verdict} | {'; '.join(families)} |" for verdict, families in groups.items()]
    return "\n".join(["| | models |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    main()
