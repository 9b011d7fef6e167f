"""The rules that hold the parts together: who imports whom, and what stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("ir", "passes", "backends")
"""Folders in order of import: each may import itself and those before it."""

ORDER = {
    "ir": ("axes", "ops", "dependencies"),
    "passes": ("simplify", "prune", "quantize"),
    "backends/tvm": (
        "errors",
        "faults",
        "targets",
        "cache",
        "graph",
        "plan",
        "tensorir",
        "functions",
        "kernels",
        "bounds",
        "lowering/context",
        "lowering/loops",
        "lowering",
        "emission",
        "artifact",
        "tuning",
        "compile",
        "latency",
    ),
    "secateur": ("data", "reporting", "checking", "pipeline", "cli"),
}
"""What a folder holds, in order of import: each part may import itself and those before it.

A part inside another one, as lowering/loops, comes before what is left of the other.
"""

WHOLE = ("backends/tvm",)
"""Folders of `ORDER` in which every file belongs to a part."""

MAX_LINES = 600
HEAVY = {"tvm", "tvm_ffi", "onnxruntime", "sklearn", "torch", "onnx_graphsurgeon"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def own_sources() -> list[Path]:
    """The sources of the package root, without the linked folders."""
    linked = {*LAYERS, "models"}
    return [
        p for p in sources("secateur") if p.relative_to(ROOT / "secateur").parts[0] not in linked
    ]


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, as absolute names (`secateur.ir.graph`)."""
    package = ["secateur", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    if path.is_relative_to(ROOT / "secateur"):
        package.pop(0)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str | None:
    """The layer a module of this package belongs to: a folder's name, or "secateur"."""
    parts = module.split(".")
    if parts[0] != "secateur":
        return None
    folder = parts[1] if len(parts) > 1 else ""
    return folder if folder in (*LAYERS, "models") else "secateur"


@pytest.mark.parametrize("folder", [*LAYERS, "models"])
def test_imports_go_upstream_only(folder: str) -> None:
    allowed = {*LAYERS[: LAYERS.index(folder) + 1]} if folder in LAYERS else {"ir", "models"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(folder)
        for module in imports(path)
        if layer(module) not in (None, *allowed) and module != "secateur"
    ]
    assert not wrong
    assert sources(folder)


def part_of(folder: str, module: str) -> str | None:
    """The part of a folder, as `ORDER` lists them, that a module belongs to."""
    base = "secateur" if folder == "secateur" else f"secateur.{folder.replace('/', '.')}"
    names = sorted(ORDER[folder], key=len, reverse=True)  # the inner one of two
    paths = {name: f"{base}.{name.replace('/', '.')}" for name in names}
    return next((n for n, p in paths.items() if module == p or module.startswith(f"{p}.")), None)


def module_name(path: Path) -> str:
    """The absolute name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "secateur" else ("secateur", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("folder", ORDER)
def test_parts_of_a_folder_import_those_before_them(folder: str) -> None:
    paths = own_sources() if folder == "secateur" else sources(folder)
    order = ORDER[folder]
    wrong, seen = [], set()
    for path in paths:
        own = part_of(folder, module_name(path))
        seen.add(own)
        if own is None:
            assert folder not in WHOLE or path.name == "__init__.py", f"{path} has no part"
            continue
        for module in imports(path):
            other = part_of(folder, module)
            if other is not None and order.index(other) > order.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong
    assert seen >= set(order)


def test_the_command_line_only_speaks_to_the_package_root() -> None:
    """Errors, how text is shown, how far work has come and scratch folders apart."""
    common = ("advance", "errors", "display", "scratch")
    allowed = ("secateur.cli", *(f"secateur.{room}" for room in ORDER["secateur"]))
    allowed += tuple(f"secateur.ir.{module}" for module in common)
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources("secateur/cli")
        for module in imports(path)
        if module.startswith("secateur.") and not module.startswith(allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["graph", "plan"])
def test_what_comes_before_kernels_knows_no_compiler(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(f"backends/tvm/{folder}")
        for module in imports(path)
        if module.split(".")[0] in ("tvm", "tvm_ffi")
    ]
    assert not wrong
    assert not loaded(
        f"import importlib, pkgutil, secateur.backends.tvm.{folder} as folder\n"
        "for found in pkgutil.iter_modules(folder.__path__, folder.__name__ + '.'):\n"
        "    importlib.import_module(found.name)"
    ) & {"tvm", "tvm_ffi"}


def test_no_module_imports_itself_in_a_circle() -> None:
    paths = [*own_sources(), *(path for folder in LAYERS for path in sources(folder))]
    known = {module_name(path): path for path in paths}
    del known["secateur"]  # it imports names on their first use
    needs = {
        name: {m for m in imports(path) if m in known and not f"{name}.".startswith(f"{m}.")}
        for name, path in known.items()
    }
    while True:
        free = [name for name, others in needs.items() if not others]
        if not free:
            break
        for name in free:
            del needs[name]
        for others in needs.values():
            others.difference_update(free)
    assert not needs


def test_the_root_folders_are_imported_through_the_package() -> None:
    """`import ir` would make a second, different `Graph` class."""
    folders = (*LAYERS, "models", "tests")
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in [*own_sources(), *(path for folder in folders for path in sources(folder))]
        for module in imports(path)
        if module.split(".")[0] in (*LAYERS, "models")
    ]
    assert not wrong


def packages() -> list[Path]:
    """The `__init__.py` of every folder of the package."""
    paths = [*own_sources(), *(path for folder in LAYERS for path in sources(folder))]
    return [path for path in paths if path.name == "__init__.py"]


def test_every_folder_says_what_it_holds() -> None:
    folders = {path.parent for folder in (*LAYERS, "secateur") for path in sources(folder)}
    linked = {ROOT / "secateur" / folder for folder in (*LAYERS, "models")}
    own = {f for f in folders if not any(f == other or other in f.parents for other in linked)}
    assert not [f for f in own if not (f / "__init__.py").exists()]
    silent = [p for p in packages() if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not silent


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    """All classes of the package; architectures of the zoo are test data."""
    paths = [*own_sources(), *(path for folder in (*LAYERS, "models") for path in sources(folder))]
    for path in paths:
        if not path.is_relative_to(ROOT / "models" / "zoo"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield path, node


def test_no_two_classes_have_one_name() -> None:
    """One word, one meaning: docs/lexicon.md."""
    found: dict[str, list[str]] = {}
    for path, node in classes():
        found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_every_class_says_what_it_is() -> None:
    assert not [f"{path}: {node.name}" for path, node in classes() if not ast.get_docstring(node)]


@pytest.mark.parametrize("folder", [*LAYERS, "models", "tests", "secateur"])
def test_files_stay_readable(folder: str) -> None:
    paths = own_sources() if folder == "secateur" else sources(folder)
    lengths = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in paths}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def loaded(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has imported after running `code`."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.splitlines()[-1].split()}


COMMAND = "from secateur.cli import main; main(%r, standalone_mode=False)"


def test_importing_the_package_is_free() -> None:
    assert not loaded("import secateur") & {*HEAVY, "numpy", "onnx", "click"}


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["targets"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded(COMMAND % arguments) & {*HEAVY, "numpy", "onnx"}


def test_the_pipeline_imports_no_compiler_until_it_compiles() -> None:
    assert not loaded("import secateur.pipeline.optimize") & {"tvm", "tvm_ffi", "sklearn", "torch"}


def processor_seconds(*arguments: str) -> float:
    """CPU time of the command line, the least of three runs: a busy machine takes longer."""
    found = []
    for _ in range(3):
        before = os.times()
        command = [sys.executable, "-m", "secateur", *arguments]
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        found.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    return min(found)


def test_help_is_fast() -> None:
    assert processor_seconds("--help") < 0.5
