"""Who imports whom: the table of docs/architecture.md, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sglang_codec"
STANDARD = frozenset(sys.stdlib_module_names)
# flow order: a planning module may import those before it
PLANNING = (
    "border",
    "paths",
    "compiled",
    "tables",
    "machine",
    "structure",
    "windows",
    "bundles",
    "absorption",
    "reading",
    "tiles",
    "schedule",
    "gangs",
    "tape",
    "division",
    "fixed_cuts",
    "schedules",
    "ways",
    "assembly",
    "packing",
    "entries",
    "forest",
    "cost_model",
    "plan",
    "inputs",
    "compile_cache",
    "jit",
    "packed",
    "planner",
    "plain",
    "capacity",
    "heavy_paths",
    "frugal",
    "index",
)
# the only modules that know of the compiler; they are loaded when a planner is made
COMPILER = ("planning.compile_cache", "planning.jit")

# module -> what it may import besides the standard library; patterns of full module names
ALLOWED: dict[str, tuple[str, ...]] = {
    "attention_shape": (),
    "shape_support": ("sglang_codec.attention_shape",),
    "planning.*": (
        "numpy",
        "numba",
        "numba.*",
        "llvmlite",
        "sglang_codec.attention_shape",
        "sglang_codec.planning.*",
    ),
    "kernels.*": (
        "torch",
        "triton",
        "triton.*",
        "sglang_codec.kernels.*",
        "sglang_codec.attention_shape",
    ),
    "buffers": ("numpy", "torch", "sglang_codec.planning.plan", "sglang_codec.attention_shape"),
    "reference": ("torch", "sglang_codec.planning.*"),
    "attention": (
        "torch",
        "sglang_codec.buffers",
        "sglang_codec.kernels.*",
        "sglang_codec.planning.plan",
    ),
    "config": (),
    "versions": (),
    "metrics": ("prometheus_client", "sglang_codec.batch_planner"),
    "explain": ("matplotlib", "sglang_codec.explain_*"),
    "explain_input": (
        "numpy",
        "sglang_codec.attention_shape",
        "sglang_codec.explain_view",
        "sglang_codec.kernels.launch",
        "sglang_codec.planning.*",
    ),
    "explain_view": (),
    "explain_picture": ("matplotlib", "matplotlib.*", "sglang_codec.explain_view"),
    "__main__": ("sglang_codec", "sglang_codec.explain*"),
}
# module -> what it must not import, even inside a function
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "planning.*": ("torch", "triton", "sglang"),
    "kernels.*": ("sglang", "sglang_codec.planning.*"),
    # two bodies behind one launch: they share what it describes, and nothing else
    "kernels.portable.*": ("sglang_codec.kernels.hopper.*", "sglang_codec.kernels.pac"),
    "kernels.hopper.*": ("sglang_codec.kernels.portable.*", "sglang_codec.kernels.pac"),
    "buffers": ("triton", "sglang"),
    "reference": ("sglang_codec.kernels.*",),
    "attention": ("sglang",),
    "wrapper": ("sglang", "sglang_codec.patches.*"),
    "device": ("sglang", "sglang_codec.patches.*"),
    "patches.*": ("sglang_codec.kernels.*",),
    "*": ("sglang_codec.testing", "tests", "tests.*"),
}


def modules() -> list[str]:
    # sorted by name, links to kernels/ and patches/ included
    folders = (PACKAGE / name for name in ("planning", "kernels", "patches"))
    files = [*PACKAGE.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    files.sort()
    return [".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files]


MODULES = modules()


def source(module: str) -> ast.Module:
    return ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(module: str, *, lazy: bool = True) -> Iterator[str]:
    """Full names of the modules that `module` imports; type-only imports do not count."""
    stack: list[ast.AST] = [source(module)]
    while stack:
        node = stack.pop()
        if is_type_checking(node):
            continue
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                # `from package import module` names a module, `from module import name` does not
                is_module = full.removeprefix("sglang_codec.") in MODULES
                yield full if is_module else node.module
        stack.extend(ast.iter_child_nodes(node))


def own_imports(module: str) -> set[str]:
    """The modules of the package that `module` imports, at once or inside a function."""
    by_name = {f"sglang_codec.{name}".removesuffix(".__init__"): name for name in MODULES}
    return {by_name[name] for name in imported(module) if name.split(".")[0] == "sglang_codec"}


def circle() -> list[str]:
    """Modules of which each imports the next, the last being the first; empty if there is none."""
    try:
        TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def rules(table: dict[str, tuple[str, ...]], module: str) -> list[tuple[str, ...]]:
    return [names for pattern, names in table.items() if fnmatch(module, pattern)]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    # a forbidden or allowed package stands for its submodules too
    return any(fnmatch(name, p) or fnmatch(name.split(".")[0], p) for p in patterns)


def test_every_rule_is_about_a_module_that_exists() -> None:
    for pattern in {**ALLOWED, **FORBIDDEN}:
        assert any(fnmatch(module, pattern) for module in MODULES), pattern
    assert {f"planning.{name}" for name in PLANNING} == {
        module for module in MODULES if module.startswith("planning.") and "__" not in module
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_it_may(module: str) -> None:
    for allowed in rules(ALLOWED, module):
        for name in imported(module):
            is_standard = name.split(".")[0] in STANDARD
            assert is_standard or any(fnmatch(name, p) for p in allowed), (
                f"{module} imports {name}, and may import {allowed} and the standard library"
            )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_that_it_must_not(module: str) -> None:
    for forbidden in rules(FORBIDDEN, module):
        for name in imported(module):
            assert not matches(name, forbidden), f"{module} imports {name}"


def plant(name: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a module of this pattern import `name` too; which one."""
    module = next(each for each in MODULES if fnmatch(each, pattern))
    with_one_more = source(module)
    with_one_more.body += ast.parse(f"def later():\n    import {name}").body
    monkeypatch.setitem(globals(), "source", lambda _: with_one_more)
    return module


@pytest.mark.parametrize(
    ("pattern", "name"), [(pattern, name) for pattern, names in FORBIDDEN.items() for name in names]
)
def test_each_forbidden_import_is_found(
    pattern: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plant(name.replace("*", "any"), pattern, monkeypatch)
    with pytest.raises(AssertionError, match=f"{module} imports"):
        test_a_module_imports_nothing_that_it_must_not(module)


@pytest.mark.parametrize("pattern", ALLOWED)
def test_an_import_that_is_not_allowed_is_found(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plant("another_package", pattern, monkeypatch)
    with pytest.raises(AssertionError, match=f"{module} imports another_package"):
        test_a_module_imports_only_what_it_may(module)


def test_no_module_leads_back_to_itself() -> None:
    assert circle() == []


@pytest.mark.parametrize(
    ("module", "added", "is_circle"),
    [
        ("factory", "from sglang_codec.plugin import load_plugin", True),
        ("planning.forest", "import sglang_codec.planning.planner", True),
        ("kernels.given", "def later():\n    import sglang_codec.kernels.pac", True),
        ("explain_view", "def later():\n    from sglang_codec import explain", True),
        ("versions", "def later():\n    from sglang_codec import PrefixSharedDecodeWrapper", False),
        ("planning.plan", "if TYPE_CHECKING:\n    from sglang_codec import explain_input", False),
    ],
)
def test_one_import_more_makes_a_circle(
    module: str, added: str, is_circle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {name: source(name) for name in MODULES}
    sources[module].body += ast.parse(added).body
    monkeypatch.setitem(globals(), "source", sources.__getitem__)
    assert (module in circle()) == is_circle


@pytest.mark.parametrize("name", PLANNING)
def test_planning_imports_in_flow_order(name: str) -> None:
    earlier = {f"sglang_codec.planning.{other}" for other in PLANNING[: PLANNING.index(name)]}
    own = set(imported(f"planning.{name}", lazy=False))
    assert {other for other in own if other.startswith("sglang_codec.planning.")} <= earlier


def test_only_two_modules_know_of_the_compiler() -> None:
    for module in MODULES:
        if module.startswith("planning.") and module not in COMPILER:
            for name in imported(module):
                assert not matches(name, ("numba", "llvmlite")), f"{module} imports {name}"
    for module in MODULES:
        at_once = set(imported(module, lazy=False))
        assert module in COMPILER or "sglang_codec.planning.jit" not in at_once


def test_the_last_resort_needs_no_compiled_planner() -> None:
    own = {name for name in imported("planning.plain") if name.startswith("sglang_codec.")}
    assert own == {f"sglang_codec.planning.{name}" for name in ("border", "plan", "windows")}


def test_the_metrics_client_is_not_imported_before_sglang_has_set_it_up() -> None:
    assert "prometheus_client" not in set(imported("metrics", lazy=False))


@pytest.mark.parametrize("module", ["__init__", "plugin", "config", "versions", "__main__"])
def test_nothing_heavy_is_imported_when_the_package_is(module: str) -> None:
    heavy = ("torch", "triton", "sglang", "numpy", "matplotlib", "sglang_codec.kernels.*")
    for name in imported(module, lazy=False):
        assert not matches(name, heavy), f"{module} imports {name} at once"


def test_patches_take_nothing_from_planning_but_paths() -> None:
    for module in MODULES:
        if module.startswith("patches."):
            names = [n for n in imported(module) if n.startswith("sglang_codec.planning")]
            assert set(names) <= {"sglang_codec.planning.paths"}, module
