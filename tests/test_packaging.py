"""What gets installed, and what a checkout must not do to other packages."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = ("__pycache__", ".egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of a copy of the sources, built without the network."""
    pytest.importorskip("setuptools", minversion="77")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("sglang_codec", "kernels", "patches", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            # links stay links, as in a clone
            subprocess.run(["cp", "-a", str(ROOT / name), str(copy)], check=True)
    if not (copy / "README.md").exists():
        (copy / "README.md").write_text("")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "-q", "-w", str(out)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    wheel.extractall(site)
    return site


def run_python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sources(folder: str, suffix: str = ".py") -> set[str]:
    return {
        f"sglang_codec/{file.relative_to(ROOT / 'sglang_codec').as_posix()}"
        for file in (ROOT / "sglang_codec" / folder).glob(f"*{suffix}")
    }


@pytest.mark.parametrize(
    "folder", ["", "planning", "kernels", "kernels/hopper", "kernels/portable", "patches"]
)
def test_the_wheel_holds_every_source_file(folder: str, wheel: zipfile.ZipFile) -> None:
    expected = sources(folder)
    assert expected, "nothing to compare with"
    assert expected <= set(wheel.namelist())


def test_the_wheel_holds_the_cost_tables(wheel: zipfile.ZipFile) -> None:
    assert sources("planning/cost_tables", ".json") <= set(wheel.namelist())


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert all(name.startswith(("sglang_codec/", "sglang_codec-")) for name in names)
    assert not [name for name in names if any(part in name for part in NOT_SHIPPED)]


def test_the_wheel_names_the_plugin(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert "[sglang.srt.plugins]\ncodec = sglang_codec.plugin:load_plugin" in text


def test_the_installed_package_imports_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sglang_codec.kernels.launch as launch, sglang_codec.patches.patch as patch\n"
        "import sglang_codec.planning.planner\n"
        "print(launch.__file__, patch.__file__)"
    )
    for file in run_python(code, cwd=tmp_path, path=installed).split():
        assert Path(file).is_relative_to(installed)


def test_importing_the_package_loads_neither_torch_nor_numpy(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, sglang_codec; print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code, cwd=tmp_path, path=installed) == "[]"


def test_a_checkout_does_not_shadow_the_package_named_kernels(tmp_path: Path) -> None:
    """SGLang depends on another package of that name; an `__init__.py` in ours would hide it."""
    for folder in ("kernels", "patches"):
        assert not (ROOT / folder / "__init__.py").exists()
    other = tmp_path / "site" / "kernels"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("marker = 'theirs'")
    code = "import kernels; print(kernels.marker)"
    assert run_python(code, cwd=ROOT, path=other.parent) == "theirs"


def test_the_links_lead_to_the_folders_of_the_checkout() -> None:
    for folder in ("kernels", "patches"):
        link = ROOT / "sglang_codec" / folder
        assert link.resolve() == ROOT / folder
        assert not (link.is_symlink() and os.path.isabs(os.readlink(link)))
