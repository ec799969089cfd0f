"""The house: imports point down only, no circles, small files and functions, and docstrings that name every argument."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import openood_dream

PACKAGE = Path(openood_dream.__file__).parent
# From top to bottom. A wing imports from itself and from those below it.
WINGS = (
    "__main__ cli __init__ bench run doctor openood pipelines reports experiment reference sections evaluators dream trainers "
    "postprocessors networks parallel datasets sampling plugins config store losses ending logs device extras errors cores _version"
).split()
EXTRAS = {"ray", "umap", "tensorboard"}  # packages that may be absent, so that only what needs them imports them
STARTERS = ("cli", "__init__")  # they import when a command or a name is asked for: start-up time
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(file) for file in FILES}
TREES = {name_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that an import statement names; ours are written absolutely."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else str(node.module)


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        for name in imported(node):
            yield node, name


def wing(module: str) -> str:
    return (module.split(".") + ["__init__"])[1]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_wing_has_its_place():
    assert {wing(module) for module in MODULES} == set(WINGS)


def test_imports_point_down():
    up = [
        f"{module} imports {target}"
        for module, tree in TREES.items()
        for _, target in imports(tree)
        if target in MODULES and WINGS.index(wing(target)) < WINGS.index(wing(module))
    ]
    assert up == []


def test_no_circles():
    graph = {
        module: {target for _, target in imports(tree) if target in MODULES and target != module}
        for module, tree in TREES.items()
        if wing(module) not in STARTERS
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle of imports: {error.args[1]}")


def test_only_extras_and_starters_import_inside_functions():
    hidden = {
        f"{module}:{node.lineno} imports {target}"
        for module, tree in TREES.items()
        if wing(module) not in STARTERS and not module.startswith("openood_dream.openood")
        for function in functions(tree)
        for node, target in imports(function)
        if target.partition(".")[0] not in EXTRAS and "tensorboard" not in target
    }
    assert hidden == set()


def test_only_the_openood_wing_knows_openood():
    knows = {
        module for module, tree in TREES.items() for _, name in imports(tree) if name.partition(".")[0] == "openood"
    }
    assert {wing(module) for module in knows} == {"openood"}


def test_files_have_at_most_450_lines():
    assert [file.name for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 450] == []


def test_functions_have_at_most_60_lines():
    lengths = {
        f"{module}.{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for module, tree in TREES.items()
        for function in functions(tree)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions, and methods of classes, whose names do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (
                (f"{node.name}.{inner.name}", inner) for inner in node.body if isinstance(inner, ast.FunctionDef)
            )


def test_public_functions_say_what_they_are_and_name_their_arguments():
    lacking = []
    for module, tree in TREES.items():
        for name, function in public(tree):
            if function.name.startswith("_") or wing(module) == "cli":  # there help texts say it
                continue
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            text = ast.get_docstring(function)
            overrides = "." in name and text is None  # a method whose base class says it, such as forward
            if text is None and not overrides:
                lacking.append(f"{module}.{name}: no docstring")
            elif text is not None and len(names) > 1:
                lacking += [f"{module}.{name}: {n}" for n in names if not re.search(rf"\b{n}\b", text)]
    assert lacking == []
