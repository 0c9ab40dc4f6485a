"""The profile reader and the overlap figures, on made-up profiles with and without a GPU."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import trace_overlap
from library.servers.clients import GenerationError
from tracing.chrome_trace import NoSteps, Profile, Span, merged, profile_of, read_profile
from tracing.joining import Progress, needed_steps
from tracing.overlap import describe, handovers, idle_us, summary
from tracing.timeline import draw, window

ZERO = 4_582_234_530_065.5  # profiles count from the machine's start
PLAN_US, FORWARD_US, HOST_US = 800.0, 9_000.0, 400.0


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
        elif plan == "stack":
            asked = "sglang_codec/batch_planner.py(83): plan_if_changed"
            made = "sglang_codec/batch_planner.py(104): _make"
            self.events.append(event("python_function", asked, start + 50, planning))
            self.events.append(event("python_function", made, start + 60, planning - 20))
        elif plan == "gather":
            self._launch("cuda_driver", "cuLaunchKernelEx", start + planning, self.host)
            self._kernel("_gather_slots_kernel", 5.0)
        if plan is None:
            asked = "sglang_codec/batch_planner.py(83): plan_if_changed"
            self.events.append(event("python_function", asked, start + 50, 5.0))
        launch = start + 100 + planning
        self._launch("cuda_runtime", "cudaGraphLaunch", launch, self.host)
        for _ in range(3):
            self._kernel("layer", FORWARD_US / 3)
        bs = "bs=4" if kind == "DECODE" else "bs=1 toks=9"
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


def recorded(ahead_us: float, how: str = "range", *, gpu: bool = True) -> Profile:
    """Eight decode steps, two of them planned, and a prefill in between."""
    recorder = Recorder(gpu=gpu)
    for number in range(8):
        recorder.step(plan=how if number in (2, 6) else None)
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


@pytest.mark.parametrize("how", ["range", "gather"])
def test_steps_own_what_they_launched(how: str) -> None:
    profile = recorded(ahead_us=2_000, how=how)
    assert [step.kind for step in profile.steps].count("EXTEND") == 1
    for step in profile.steps:
        # the graph alone, without the kernel that gathers the KV index
        assert step.forward.us == pytest.approx(FORWARD_US)
        assert step.host.start <= step.launch <= step.host.end
        # the GPU is behind: it runs after the launch, mostly after the host's part
        assert step.forward.start > step.launch


@pytest.mark.parametrize(
    ("how", "found_by"),
    [("range", "ranges"), ("stack", "Python functions"), ("gather", "the gather kernel")],
)
def test_planning_is_found(how: str, found_by: str) -> None:
    profile = recorded(ahead_us=2_000, how=how)
    assert profile.found_plans_by == found_by
    planned = [i for i, step in enumerate(profile.steps) if step.plan]
    assert planned == [2, 7]
    assert profile.steps[2].plan.us == pytest.approx(PLAN_US)


def test_planning_behind_the_gpu_is_hidden() -> None:
    found = handovers(recorded(ahead_us=2_000))
    result = summary(found)
    assert result["hidden"] == pytest.approx(1)
    assert result["exposed_us"] == pytest.approx(0, abs=1)
    planned = result["groups"]["planned, after a decode step"]
    assert (planned["steps"], planned["plan_us"]) == (2, pytest.approx(PLAN_US))
    # launched before the GPU was free
    assert planned["lead_us"] == pytest.approx(2_000 - 100 - PLAN_US)
    assert "planning is hidden" in describe(result, "ranges")


def test_planning_that_the_gpu_waits_for_is_not() -> None:
    result = summary(handovers(recorded(ahead_us=200)))
    groups = result["groups"]
    # 100 us from the step's start to its launch, 3 from the launch to the kernel
    assert groups["not planned, after a decode step"]["idle_us"] == pytest.approx(0, abs=1)
    assert groups["planned, after a decode step"]["idle_us"] == pytest.approx(PLAN_US - 97)
    assert groups["planned, after a decode step"]["lead_us"] < 0
    assert result["exposed_us"] == pytest.approx(PLAN_US - 97)
    assert result["hidden"] == pytest.approx(97 / PLAN_US)
    assert "not hidden" in describe(result, "ranges")


def test_a_step_after_a_prefill_is_counted_apart() -> None:
    groups = summary(handovers(recorded(ahead_us=200)))["groups"]
    assert groups["not planned, after a prefill"]["steps"] == 1
    assert groups["not planned, after a decode step"]["steps"] == 4


def test_a_profile_without_gpu_has_host_times_only() -> None:
    found = handovers(recorded(ahead_us=0, gpu=False))
    result = summary(found)
    assert (result["hidden"], found[1].idle_us) == (None, None)
    assert found[1].plan_us == pytest.approx(PLAN_US)
    assert "takes a GPU" in describe(result, "ranges")


def test_a_profile_without_planning_says_so() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder.step()
    assert recorder.profile().found_plans_by is None
    assert "no planning" in describe(summary(handovers(recorder.profile())), None)


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
    assert (document["gpu"], document["plans_found_by"]) == ("H100", "ranges")
    assert len(document["steps"]) == 3
    assert str(tmp_path) not in results.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments"),
        (["--trace", "nothing.json"], "does not exist"),
        (["--url", "http://x", "--", "--tp=2"], "a server that this program starts"),
        (["--model", "m", "--tree", "1,2"], "nodes per level _ tokens per node"),
    ],
)
def test_bad_command_lines_say_what_to_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        trace_overlap.main(words)
    assert message in capsys.readouterr().err


def test_progress_reports_what_went_wrong_while_waiting() -> None:
    progress = Progress()
    progress.add(3)
    progress.wait_for(3, limit_s=0)
    with pytest.raises(GenerationError, match="3 of 4 tokens"):
        progress.wait_for(4, limit_s=0.01)
    progress.fail(ConnectionError("gone"))
    with pytest.raises(GenerationError, match="gone"):
        progress.wait_for(3, limit_s=1)


def test_the_batch_outlasts_the_profile() -> None:
    assert needed_steps(64) > 2 * 64
