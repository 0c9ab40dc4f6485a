"""The profile reader and the overlap figures, on made-up profiles with and without a GPU."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import trace_overlap
from library.servers.clients import GenerationError
from tracing.chrome_trace import NoSteps, Profile, Span, merged, profile_of, read_profile
from tracing.joining import Decoding, needed_tokens
from tracing.overlap import describe, handovers, idle_us, summary
from tracing.timeline import draw, window

ZERO = 4_582_234_530_065.5  # profiles count from the machine's start
PLAN_US, FORWARD_US, HOST_US, GATHER_US = 800.0, 9_000.0, 400.0, 5.0


def event(cat: str, name: str, start: float, us: float, **args: object) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": ZERO + start, "dur": us, "args": args}


class Recorder:
    """A host that runs ahead of a GPU: each step is launched, and runs when the GPU is free."""

    def __init__(self, *, gpu: bool = True) -> None:
        self.gpu = gpu
        self.events: list[dict] = [{"ph": "M", "name": "process_name", "pid": 1}]
        self.host, self.device, self.correlation = 0.0, 0.0, 0

    def step(self, kind: str = "DECODE", plan: str | None = None, plan_us: float = PLAN_US) -> None:
        """`plan`: how this step's planning shows in the profile; None for a step without."""
        start, planning = self.host, plan_us if plan else 0.0
        if plan == "range":
            self.events.append(event("user_annotation", "codec.plan", start + 50, planning - 10))
            self.events.append(event("user_annotation", "codec.upload", start + 40 + planning, 10))
            # as the kernel that gathers the KV index: before the graph, and not of it
            self._launch("cuda_driver", "cuLaunchKernelEx", start + planning, self.host)
            self._kernel("_gather_slots_kernel", GATHER_US)
        launch = start + 100 + planning
        self._launch("cuda_runtime", "cudaGraphLaunch", launch, self.host)
        for _ in range(3):
            self._kernel("layer", FORWARD_US / 3)
        bs = "bs=1 toks=9" if kind == "EXTEND" else "bs=4"
        span = HOST_US + planning
        self.events.append(event("user_annotation", f"step[{kind} {bs}]", start, span))
        self.events.append(event("user_annotation", "scheduler.run_batch", start, span + 20))
        self.host = start + span + 50

    def wait_for_device(self, ahead_us: float) -> None:
        """Go on so long before the GPU ends, as the scheduler does that waits for results."""
        self.host = max(self.host, self.device - ahead_us)

    def profile(self) -> Profile:
        return profile_of(self.trace())

    def trace(self) -> dict:
        devices = [{"id": 0, "name": "H100"}] if self.gpu else []
        return {"deviceProperties": devices, "traceEvents": self.events}

    def _launch(self, cat: str, name: str, at: float, _: float) -> None:
        self.correlation += 1
        self.launched = at
        if self.gpu:
            self.events.append(event(cat, name, at, 5.0, correlation=self.correlation))

    def _kernel(self, name: str, us: float) -> None:
        if self.gpu:
            start = max(self.device, self.launched + 3.0)
            self.events.append(event("kernel", name, start, us, correlation=self.correlation))
            self.device = start + us


def recorded(ahead_us: float, *, gpu: bool = True, kind: str = "DECODE") -> Profile:
    """Eight steps of `kind`, two of them planned, and a prefill in between."""
    recorder = Recorder(gpu=gpu)
    for number in range(8):
        recorder.step(kind, plan="range" if number in (2, 6) else None)
        recorder.wait_for_device(ahead_us)
        if number == 3:
            recorder.step("EXTEND")
            recorder.wait_for_device(ahead_us)
    return recorder.profile()


def test_spans_that_touch_are_one() -> None:
    spans = [Span("a", 5, 7), Span("b", 0, 2), Span("c", 2, 3), Span("d", 6, 6.5)]
    assert [(span.start, span.end) for span in merged(spans)] == [(0, 3), (5, 7)]


def test_idle_time_is_what_nothing_covers() -> None:
    assert idle_us(0, 10, [Span("", -5, 1), Span("", 4, 6), Span("", 9, 20)]) == 6
    assert idle_us(5, 4, []) == 0


def test_steps_own_what_they_launched() -> None:
    profile = recorded(ahead_us=2_000)
    assert [step.kind for step in profile.steps].count("EXTEND") == 1
    for step in profile.steps:
        # the graph alone, without the kernel that gathers the KV index
        assert step.forward.us == pytest.approx(FORWARD_US)
        assert step.host.start <= step.launch <= step.host.end
        # the GPU is behind: it runs after the launch, mostly after the host's part
        assert step.forward.start > step.launch


def test_planning_is_found() -> None:
    profile = recorded(ahead_us=2_000)
    planned = [i for i, step in enumerate(profile.steps) if step.plan]
    assert planned == [2, 7]
    assert profile.steps[2].plan.us == pytest.approx(PLAN_US)


@pytest.mark.parametrize("kind", ["DECODE", "VERIFY"])
def test_planning_behind_the_gpu_is_hidden(kind: str) -> None:
    found = handovers(recorded(ahead_us=2_000, kind=kind))
    result = summary(found)
    assert result["hidden"] == pytest.approx(1)
    assert result["exposed_us"] == pytest.approx(0, abs=1)
    planned = result["groups"]["planned, after a decode step"]
    assert (planned["steps"], planned["plan_us"]) == (2, pytest.approx(PLAN_US))
    # launched before the GPU was free
    assert planned["lead_us"] == pytest.approx(2_000 - 100 - PLAN_US)
    assert "planning is hidden" in describe(result)


def test_planning_that_the_gpu_waits_for_is_not() -> None:
    result = summary(handovers(recorded(ahead_us=200)))
    groups = result["groups"]
    # 100 us from the step's start to its launch, 3 from the launch to the kernel
    hidden_us = 97 + GATHER_US
    assert groups["not planned, after a decode step"]["idle_us"] == pytest.approx(0, abs=1)
    assert groups["planned, after a decode step"]["idle_us"] == pytest.approx(PLAN_US - hidden_us)
    assert groups["planned, after a decode step"]["lead_us"] < 0
    assert result["exposed_us"] == pytest.approx(PLAN_US - hidden_us)
    assert result["hidden"] == pytest.approx(hidden_us / PLAN_US)
    assert "not hidden" in describe(result)


def test_a_step_after_a_prefill_is_counted_apart() -> None:
    groups = summary(handovers(recorded(ahead_us=200)))["groups"]
    assert groups["not planned, after a prefill"]["steps"] == 1
    assert groups["not planned, after a decode step"]["steps"] == 4


def test_a_profile_without_gpu_has_host_times_only() -> None:
    found = handovers(recorded(ahead_us=0, gpu=False))
    result = summary(found)
    assert (result["hidden"], found[1].idle_us) == (None, None)
    assert found[1].plan_us == pytest.approx(PLAN_US)
    assert "takes a GPU" in describe(result)


def test_a_profile_without_planning_says_so() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder.step()
    assert not any(step.plan for step in recorder.profile().steps)
    assert "cannot be told" in describe(summary(handovers(recorder.profile())))


def test_something_else_is_refused() -> None:
    with pytest.raises(NoSteps, match="no range named step"):
        profile_of({"traceEvents": [event("user_annotation", "train", 0, 5)]})


def test_the_picture_prefers_a_plan_after_a_decode_step() -> None:
    recorder = Recorder()
    for number in range(16):
        recorder.step(
            "EXTEND" if number in (1, 7) else "DECODE", "range" if number in (2, 8) else None
        )
    after_prefill = handovers(recorder.profile())
    assert window(recorder.profile(), after_prefill) == range(6, 12)
    recorder.step(plan="range")
    found = handovers(recorder.profile())
    assert window(recorder.profile(), found) == range(14, 17)


@pytest.mark.parametrize("gpu", [True, False])
def test_the_picture_shows_a_plan_after_a_decode_step(tmp_path: Path, *, gpu: bool) -> None:
    profile = recorded(ahead_us=200, gpu=gpu)
    found = handovers(profile)
    shown = window(profile, found)
    assert any(f.plan_us and f.after == "DECODE" for f in found if f.number in shown)
    draw(profile, found, "title", tmp_path / "folder" / "picture.png")
    assert (tmp_path / "folder" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_an_earlier_profile_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    for plan in (None, None, "range", None):
        recorder.step(plan=plan)
        recorder.wait_for_device(2_000)
    path, picture, results = (tmp_path / name for name in ("t.json.gz", "t.png", "t.json"))
    with gzip.open(path, "wt") as file:
        json.dump(recorder.trace(), file)
    assert len(read_profile(path).steps) == 4
    words = ["--trace", str(path), "--out", str(picture), "--json", str(results)]
    assert trace_overlap.main(words) == 0
    assert "planning is hidden" in capsys.readouterr().out
    document = json.loads(results.read_text())
    assert (document["gpu"], document["versions"]) == ("H100", None)
    assert len(document["steps"]) == 3
    assert str(tmp_path) not in results.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments"),
        (["--trace", "nothing.json"], "does not exist"),
        (["--trace", "x", "--", "--tp=2"], "a server that this program starts"),
        (["--model", "m", "--tree", "1,2"], "nodes per level _ tokens per node"),
    ],
)
def test_bad_command_lines_say_what_to_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        trace_overlap.main(words)
    assert message in capsys.readouterr().err


class Generating:
    """A client that generates three tokens and then waits, or fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.end = error, Event()

    def generate(self, requests: list, sampling: object, on_token: Callable) -> None:
        on_token(3)
        if self.error:
            raise self.error
        self.end.wait(30)


def test_who_waits_for_tokens_hears_what_went_wrong() -> None:
    with ThreadPoolExecutor(2) as pool:
        client = Generating(None)
        decoding = Decoding(client, [], pool)
        decoding.wait_for(3, limit_s=30)
        with pytest.raises(GenerationError, match="3 of 4 tokens"):
            decoding.wait_for(4, limit_s=0.01)
        client.end.set()
        with pytest.raises(ConnectionError, match="gone"):
            Decoding(Generating(ConnectionError("gone")), [], pool).wait_for(4, limit_s=30)


def test_the_batch_outlasts_the_profile() -> None:
    assert needed_tokens(64, ["--tp=2"]) > 2 * 64
    # a step may yield all that is drafted
    assert needed_tokens(64, ["--speculative-num-draft-tokens", "4"]) > 2 * 4 * 64
