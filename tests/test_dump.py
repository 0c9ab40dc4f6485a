"""The dump: what it holds, that it harms nobody's files, and that it never stops serving."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_codec import dump as dump_module
from sglang_codec.dump import NOT_WRITTEN, PlanDump, path_of_rank
from sglang_codec.patches.fallbacks import FALLBACKS


class Planner:
    """What a dump reads of a `BatchPlanner`."""

    def __init__(self, saved: int = 5) -> None:
        self.first = SimpleNamespace(
            packed=SimpleNamespace(kv_tokens_stock=saved + 1, kv_tokens_read=1),
            forest=SimpleNamespace(to_dict=lambda: {"forest of": saved}),
            plan=SimpleNamespace(to_dict=lambda: {"plan of": saved}),
        )
        self.totals = SimpleNamespace(to_dict=lambda: {"steps": saved})


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fallback counts, empty before and after."""
    monkeypatch.setattr(FALLBACKS, "counts", type(FALLBACKS.counts)())
    return FALLBACKS.counts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(dump_module.time, "monotonic", lambda: clock.now)
    return clock


def write(dump: PlanDump, saved: int = 5, *, changed: bool = True) -> None:
    dump.write(Planner(saved), FALLBACKS.counts, changed=changed)


def steps(file: Path) -> int:
    return json.loads(file.read_text())["totals"]["steps"]


def test_it_keeps_the_plan_that_saved_most_beside_the_latest_totals(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    dump = PlanDump(tmp_path / "plan.json")
    counts["some reason"] = 2
    for saved in (3, 9, 4):
        write(dump, saved)
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["plan"] == {"plan of": 9}
    assert record["forest"] == {"forest of": 9}
    assert record["totals"] == {"steps": 4, "fallbacks": {"some reason": 2}}


def test_an_unchanged_plan_is_written_now_and_then(tmp_path: Path, clock: SimpleNamespace) -> None:
    file = tmp_path / "plan.json"
    dump = PlanDump(file)
    for seconds, saved, changed, seen in (
        (0, 1, True, 1),
        (0.1, 2, False, 1),
        (0.1, 3, True, 3),
        (0.6, 4, False, 4),
    ):
        clock.now += seconds
        write(dump, saved, changed=changed)
        assert steps(file) == seen


@pytest.mark.parametrize("target", ["file", "nothing", "folder"])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, target: str) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "plan.json"
    if target == "file":
        elsewhere.write_text("precious")
    elif target == "folder":
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    write(PlanDump(link))
    assert not link.is_symlink()
    assert steps(link) == 5
    assert {file.name for file in tmp_path.iterdir()} <= {"plan.json", "elsewhere"}
    if target == "file":
        assert elsewhere.read_text() == "precious"
    elif target == "folder":
        assert not list(elsewhere.iterdir())
    else:
        assert not elsewhere.exists()


def test_a_link_where_the_scratch_file_would_be_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int]
) -> None:
    """Even by someone who has foreseen its name, which differs every time."""
    names = []
    really = os.open
    monkeypatch.setattr(
        dump_module.os,
        "open",
        lambda path, *a: (names.append(Path(path).name), really(path, *a))[1],
    )
    dump = PlanDump(tmp_path / "plan.json")
    write(dump)
    write(dump)
    assert len({*names}) == 2
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr(dump_module.secrets, "token_hex", lambda _: "foreseen")
    foreseen = tmp_path / ".codec-foreseen"
    foreseen.symlink_to(precious)
    write(dump, 77)
    assert precious.read_text() == "precious"
    # not ours, so left alone
    assert foreseen.is_symlink()
    assert counts == {NOT_WRITTEN: 1}


def test_the_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(PlanDump(tmp_path / "plan.json"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o640


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file that can be opened, but takes nothing."""

    def __init__(self, handle: int, *_: Any, **__: Any) -> None:
        self.handle = handle

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self.handle)

    write = full_disk


FAILURES = {
    "no scratch file": (dump_module.os, "open", full_disk),
    "disk full while writing": (dump_module, "open", FullFile),
    "no move": (dump_module.os, "replace", full_disk),
    "not JSON": (dump_module.json, "dumps", lambda _: json.loads("{")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_reaches_serving_or_leaves_a_file(
    name: str,
    tmp_path: Path,
    counts: dict[str, int],
    clock: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is counted at every try, logged once, and tried again quietly until it works."""
    file = tmp_path / "plan.json"
    dump = PlanDump(file)
    write(dump, 1)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(*FAILURES[name], raising=False)
        for _ in range(3):
            write(dump, 2)
        assert counts == {NOT_WRITTEN: 1}
        clock.now += 60
        write(dump, 3)
        assert counts == {NOT_WRITTEN: 2}
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    assert steps(file) == 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"SGLANG_CODEC_DUMP={file} could not be written" in message
    clock.now += 60
    write(dump, 4)
    assert steps(file) == 4


@pytest.mark.parametrize("part", ["packed", "forest", "plan", "totals"])
def test_a_planner_that_cannot_be_shown_does_not_stop_serving(
    part: str, tmp_path: Path, counts: dict[str, int]
) -> None:
    planner = Planner()
    setattr(planner if part == "totals" else planner.first, part, None)
    PlanDump(tmp_path / "plan.json").write(planner, {}, changed=True)
    assert counts == {NOT_WRITTEN: 1}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path, clock: SimpleNamespace) -> None:
    folder = tmp_path / "folder"
    dump = PlanDump(folder / "plan.json")
    write(dump)
    folder.mkdir()
    clock.now += 60
    write(dump, 8)
    assert steps(folder / "plan.json") == 8


def test_it_is_written_where_the_process_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dump = PlanDump("plan.json")
    monkeypatch.chdir("/")
    write(dump)
    assert steps(tmp_path / "plan.json") == 5


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        ({"dp_rank": None, "pp_rank": 0, "tp_rank": 0}, "plan.v2.json"),
        ({"dp_rank": 0, "pp_rank": 0, "tp_rank": 3}, "plan.v2.tp3.json"),
        ({"dp_rank": 1, "pp_rank": 2, "tp_rank": 3}, "plan.v2.dp1.pp2.tp3.json"),
    ],
)
def test_every_rank_has_a_file_of_its_own(ranks: dict[str, int | None], name: str) -> None:
    runner = SimpleNamespace(ps=SimpleNamespace(**ranks))
    assert path_of_rank("folder/plan.v2.json", runner) == Path("folder", name)
    no_suffix = path_of_rank("plan", SimpleNamespace(ps=SimpleNamespace(tp_rank=1)))
    assert no_suffix == Path("plan.tp1")
