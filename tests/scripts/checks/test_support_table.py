"""The page of supported models says what the start-up checks say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sglang_versions import REPOSITORY
from warm_python import run_warm

PAGE = (REPOSITORY / "docs" / "support.md").read_text()
INDEX = json.loads((REPOSITORY / "tests" / "data" / "models" / "index.json").read_text())

# served, in part, by Transformers' fallback, by a list of names, by hand, and refused
SOME = ("llama32_1b", "gemma3_27b", "seed_oss_36b", "exaone4_32b", "gpt_oss_120b", "minimax_m3")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    done = run_warm(REPOSITORY / "scripts" / "checks" / "support_table.py", *SOME)
    assert done.returncode == 0, done.stderr[-4000:]
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


def test_rows_made_anew_are_those_of_the_page(lines: list[str]) -> None:
    assert len(lines) == len(SOME)
    for line in lines:
        assert line in PAGE


def test_the_page_has_one_row_for_every_model() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    families = [row.split(" | ")[0].strip("|* ") for row in rows]
    assert families == [entry["family"] for entry in INDEX]


def test_readme_lists_the_models_of_the_page() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    listed = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1].rstrip(" |")
        for line in readme.split("<!-- models")[1].split("<!-- end")[0].splitlines()
        if line.startswith("| ")
    }
    for verdict in ("served", "refused"):
        rows = [line.split(" | ") for line in PAGE.splitlines() if f" | {verdict} | " in line]
        families = [row[0].strip("|* ") for row in rows]
        assert listed[verdict] == "; ".join(families)


def test_every_configuration_is_listed_or_made_by_hand() -> None:
    folder = REPOSITORY / "tests" / "data" / "models"
    built = {entry["name"] for entry in INDEX if "layers" not in entry}
    assert {Path(file).stem for file in folder.glob("*.json")} == built | {"index"}


def test_llama_4_is_not_served_where_it_attends_in_chunks() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| Llama 4")]
    assert len(rows) == 2
    assert all("| 1 of 4 layers | 3 delegated: chunked attention |" in row for row in rows)
