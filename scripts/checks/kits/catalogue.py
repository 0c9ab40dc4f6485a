"""Which kits there are, what server each needs, and which of SGLang's cannot run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import TestCase

from kits import served
from kits.dense import Device
from kits.served import Mixin


@dataclass(frozen=True, slots=True)
class ServerKind:
    """Flags and environment of a server."""

    name: str
    flags: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kit:
    """One kit on one server.

    Args:
        compare: run it on the stock backend in any case, not only where a test fails.
    """

    name: str
    server: ServerKind
    make: Callable[[served.Target], type[TestCase]]
    limit_s: float = 120.0
    compare: bool = False


# SGLang's own checks of its KV pool, in every iteration
_STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
}
MAIN = ServerKind("main", variables=_STRICT)
# these kits ask for up to 100,000 tokens, whatever the model was trained for
_LONG = ("--context-length=120000",)
_ANY_LENGTH = _STRICT | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
LONG = ServerKind("long context", _LONG, _ANY_LENGTH)
SESSIONS = ServerKind("sessions", ("--enable-streaming-session", *_LONG), _ANY_LENGTH)
# the limit that the kit's requests must overrun
SHORT = ServerKind(
    "short sessions", ("--enable-streaming-session", "--context-length=512"), _STRICT
)
WAITING = ServerKind(
    "waiting limit", ("--max-running-requests=1",), {"SGLANG_REQ_WAITING_TIMEOUT": "0.001"}
)
RUNNING = ServerKind("running limit", variables={"SGLANG_REQ_RUNNING_TIMEOUT": "2"})

# a small model would be done before it is paused or interrupted
_LONG_ANSWERS = {"pause_max_new_tokens": 4096, "pause_ignore_eos": True}
_INTERRUPTED = {"running_timeout_max_new_tokens": 4096}
_STREAMING = "streaming_session_kit"
KITS = (
    Kit(
        "basic_decode_correctness",
        MAIN,
        Mixin("basic_decode_correctness_kit", "BasicDecodeCorrectnessMixin"),
    ),
    Kit(
        "basic_scheduler_stress",
        MAIN,
        Mixin("basic_scheduler_stress_kit", "BasicSchedulerStressMixin"),
    ),
    Kit("cache_hit", MAIN, served.cache_hit),
    Kit("prefix_cache_branching", MAIN, served.prefix_cache_branching),
    Kit("radix_cache_server", MAIN, served.radix_cache_server, 180),
    Kit("unified_radix_cache", MAIN, served.unified_radix_cache, 180, compare=True),
    Kit(
        "pause_generation",
        MAIN,
        Mixin("pause_generation_kit", "PauseResumeInPlaceMixin", attributes=_LONG_ANSWERS),
    ),
    Kit("abort_timeout, all", LONG, Mixin("abort_timeout_kit", "AbortAllMixin")),
    Kit("streaming_session", SESSIONS, Mixin(_STREAMING, "StreamingSessionKitMixin", True), 180),
    Kit(
        "streaming_session, aborts", SHORT, Mixin(_STREAMING, "AbortLeakReproKitMixin", True), 180
    ),
    Kit("abort_timeout, waiting", WAITING, Mixin("abort_timeout_kit", "WaitingTimeoutMixin")),
    Kit(
        "abort_timeout, running",
        RUNNING,
        Mixin("abort_timeout_kit", "RunningTimeoutTwoWaveMixin", attributes=_INTERRUPTED),
    ),
)
# the unit tests of attention backends need no server; the kit's own dtype is float16
DENSE = {
    "attention_unittest": Device("cuda", "bfloat16", "fa3"),
    "attention_unittest, float16": Device("cuda", "float16", "triton"),
}
CPU = Device("cpu", "float32", "torch_native")
NAMES = (*DENSE, *(kit.name for kit in KITS))

# what is in SGLang's package and cannot run with codec, or not on a machine without a network
NOT_RUN = {
    "attention_unittest, sliding window": "its windows have 4 tokens: a model with"
    " no other layer is refused at start-up, since codec leaves such windows to the stock backend",
    "attention_unittest, the other attention methods": "MLA, DSA, GDN, KDA, Lightning and Mamba2"
    " layers are refused or belong to other backends",
    "attention_unittest, speculative runners": "speculative decoding is refused at start-up",
    "unified_radix_cache, AccuracyTwoPassMixin": "downloads GSM8K, or needs the third level of a"
    " hierarchical cache",
    "unified_radix_cache, fixtures": "the package has the fixtures in kits/unified_radix_cache and"
    " not the tests that use them",
    "unified_radix_cache on the Rust tree": "SGLang's Rust tree core is built for another torch;"
    " the Python core of the same package is used",
}
