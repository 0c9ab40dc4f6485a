"""`python -m sglang_codec explain`: what it says, draws and refuses."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from sglang_codec import __version__
from sglang_codec.__main__ import main
from sglang_codec.explain import draw, explain_text
from sglang_codec.explain_input import Machine, forest_of_paths, tree_paths
from sglang_codec.explain_view import InputError, View

FEW_SHOT = {"paths": [[["system", 4096], ["shots", 900], [f"q{r}", 30 + r]] for r in range(8)]}


def write(tmp_path: Path, data: Any) -> str:
    path = tmp_path / "input.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def explain(tmp_path: Path, data: Any, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["explain", write(tmp_path, data), *options]) == 0
    return capsys.readouterr().out


def dump_of(paths: list, **machine: int) -> dict[str, Any]:
    return Machine(**machine).dump(*forest_of_paths(paths))


def test_a_hand_written_forest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = explain(tmp_path, FEW_SHOT, capsys)
    assert "8 requests with 40,236 KV tokens, 5,264 of them unique" in text
    assert "share ratio 86.9%" in text
    assert "run 0 (system + shots)" in text
    assert "tokens 0..4,996, 8 readers" in text
    assert "8 private tails" in text


def test_a_tree_in_short_notation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = explain(tmp_path, {"tree": "1,2,8_2048,512,64"}, capsys)
    assert "8 requests" in text
    assert "tokens 2,048..2,560, 4 readers" in text


def test_a_servers_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = dump_of(FEW_SHOT["paths"])
    del dump["labels"]
    totals = {"steps": 1234, "plans": 7, "kv_tokens_read": 10, "kv_tokens_stock": 40}
    dump["totals"] = {**totals, "fallbacks": {"the tree is locked": 3}}
    text = explain(tmp_path, dump, capsys)
    assert "1,234 decode steps with 7 plans" in text
    assert "4.00 times as many" in text
    assert "3 steps without sharing: the tree is locked" in text
    assert "run 0 " in text


def test_totals_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = explain(tmp_path, {"totals": {"steps": 3}}, capsys)
    assert "3 decode steps" in text


def test_a_plan_without_its_forest() -> None:
    forest, _ = forest_of_paths(FEW_SHOT["paths"])
    dump = dump_of(FEW_SHOT["paths"])
    assert "program slots" in explain_text({"plan": dump["plan"]})
    assert "8 private tails" in explain_text({"plan": dump["plan"], "forest": forest.to_dict()})


@pytest.mark.parametrize(
    "tree",
    [
        "1024_700",
        "1,64_120000,2048",
        "1,4,16,64,256,1024_256,8,256,64,32,256",
        "1,2,4,8_4096,0,0,9",
    ],
)
@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_text_stays_short_and_narrow(tree: str, width: int) -> None:
    lines = explain_text(dump_of(tree_paths(tree)), width=width).splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= width


def test_absorbed_runs_are_marked() -> None:
    counts = [[["few", 3], [f"tail {row}", 400]] for row in range(6)]
    text = explain_text(dump_of(counts))
    assert "absorbed: too short, each child reads it again" in text


def test_absorbed_tokens_are_named_where_they_are_read() -> None:
    counts = [[["few", 3], [f"tail {row}", 400]] for row in range(2)]
    assert "with 3 absorbed tokens" in explain_text(dump_of(counts))


@pytest.mark.parametrize("slots", [3, 40])
def test_the_bars_show_every_slot_or_groups_of_them(slots: int) -> None:
    text = explain_text(dump_of(FEW_SHOT["paths"], slots=slots))
    bars = [line for line in text.splitlines() if "|" in line and " us" in line]
    assert len(bars) == (3 if slots == 3 else 8)


def test_the_figures_add_up() -> None:
    view = View.of(dump_of(FEW_SHOT["paths"]))
    assert view.shared_tokens == (4996 + sum(range(30, 38)), 8 * 4996 + sum(range(30, 38)))
    assert sum(view.loads) == pytest.approx(sum(chunk.us for chunk in view.chunks))
    assert 0 < view.balance <= 1
    assert view.balance * view.makespan * len(view.slots) == pytest.approx(sum(view.loads))


@pytest.mark.parametrize(
    "paths",
    [
        FEW_SHOT["paths"],
        tree_paths("256_700"),
        tree_paths("1_5"),
        [[["few", 3], [f"tail {row}", 400]] for row in range(6)],
        [[], [["a", 9]]],
    ],
    ids=["few-shot", "no sharing", "one request", "absorbed", "an empty request"],
)
def test_the_picture_is_drawn(paths: list, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "picture.png"
    draw(dump_of(paths), target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_command_line_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "picture.svg"
    assert f"picture: {target}" in explain(tmp_path, FEW_SHOT, capsys, "--png", str(target))
    assert "system" in target.read_text() or "<svg" in target.read_text()


def test_a_missing_matplotlib_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without_matplotlib(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert main(["explain", write(tmp_path, FEW_SHOT), "--png", str(tmp_path / "x.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", 'holds none of "plan"'),
        ({"forest": {}}, 'holds none of "plan"'),
        ({"plan": {"task_table": [[1]]}}, "not a dump of a forest and its plan"),
        ({"plan": 3}, "not a dump"),
        ({"plan": dump_of([[["a", 9]]])["plan"], "forest": {"order": [0]}}, "not a dump"),
        ({"paths": []}, "at least one row"),
        ({"paths": {"a": 1}}, "at least one row"),
        ({"paths": [3]}, "row 0 is 3"),
        ({"paths": [[["a"]]]}, "row 0 has the segment ['a']"),
        ({"paths": [[[None, 3]]]}, "segment id None"),
        ({"paths": [[["a", -1]]]}, "'a' of row 0 has -1 tokens"),
        ({"paths": [[["a", 1.5]]]}, "has 1.5 tokens"),
        ({"paths": [[["a", True]]]}, "has True tokens"),
        ({"paths": [[["a", 1]], [["a", 2]]]}, "segment 'a' has 2 tokens after None in row 1"),
        ({"paths": [[["a", 1], ["b", 1]], [["b", 1]]]}, "use another id"),
        ({"paths": [[["a", 2**31]]]}, "more than 2147483647 tokens"),
        ({"paths": [[]] * 65537}, "at most 65536"),
        ({"tree": "1,2"}, "cannot be read"),
        ({"tree": "1,x_3,4"}, "cannot be read"),
        ({"tree": 7}, "cannot be read"),
        ({"tree": "1,2_3"}, "2 node counts but 1 token counts"),
        ({"tree": "4,2_3,3"}, "never decrease"),
        ({"tree": "0,2_3,3"}, "must be positive"),
        ({"tree": "1,2_3,-3"}, "negative"),
        ({"tree": "1,99999_3,3"}, "at most 65536"),
    ],
)
def test_bad_input_is_refused_without_a_traceback(
    data: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", write(tmp_path, data)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("sglang-codec explain: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--width", "10"), "--width is 10; give a number from 60 to 1000"),
        (("--group", "17"), "--group is 17; give a number from 1 to 16"),
        (("--kv-heads", "0"), "--kv-heads is 0"),
        (("--head-dim", "0"), "--head-dim is 0"),
        (("--slots", "0"), "--slots is 0"),
        (("--png", "picture.nonsense"), "cannot write picture.nonsense"),
    ],
)
def test_bad_options_are_refused(
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if options[0] == "--png":
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["explain", write(tmp_path, FEW_SHOT), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_too_large_a_picture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="more than 20000 boxes; use the text"):
        draw(dump_of(tree_paths("20000_5")), tmp_path / "x.png")


def test_a_dump_without_a_forest_has_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="nothing to draw"):
        draw({"plan": dump_of(FEW_SHOT["paths"])["plan"]}, tmp_path / "x.png")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["--version"])
    assert status.value.code == 0
    assert capsys.readouterr().out.strip() == f"sglang_codec {__version__}"


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"]])
def test_help_says_what_to_do(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 0
    assert "explain" in capsys.readouterr().out
