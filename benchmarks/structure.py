"""Measure how orchestrator/ is built: import arrows, parameter lists, string keys, lines.

    python benchmarks/structure.py [FOLDER]

An arrow is one file that imports another of the same folder, counted once however many names it takes. A room is what
lies directly in the folder: a file, or a folder with everything in it.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def arrows(folder: Path) -> set[tuple[str, str]]:
    """Return (importer, imported) pairs of dotted module names inside a package."""
    modules = {_module(path, folder): path for path in folder.rglob("*.py")}
    return {
        (name, target)
        for name, path in modules.items()
        for target in _imported(path, set(modules))
        if target != name and target != folder.name
    }


def _module(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in modules)
            if node.module in modules and not all(name in modules for name in inner):
                yield node.module


def room_of(module: str) -> str:
    """Return the part of a module's name that lies directly in the package."""
    return module.split(".")[1] if "." in module else module


def functions(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the number of parameters of every function (self and cls aside) and its name."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                yield len([name for name in names if name not in ("self", "cls")]), f"{path.name}:{node.name}"


def string_subscripts(folder: Path) -> int:
    """Return how often a value is taken or set by a literal string key."""
    return sum(
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        and not _is_annotation(node)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def _is_annotation(node: ast.Subscript) -> bool:
    """Return whether it is a type such as Literal["mean"]."""
    name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    return name in ("Literal", "NDArray", "Annotated", "type", "Series")


def measure(folder: Path) -> dict[str, object]:
    """Return the measures of a package by their names."""
    found = arrows(folder)
    between = {(room_of(one), room_of(other)) for one, other in found if room_of(one) != room_of(other)}
    by_length = sorted(functions(folder), reverse=True)
    outside_cli = [item for item in by_length if not item[1].startswith(tuple(_cli_files(folder)))]
    files = [path for path in folder.rglob("*.py") if path.read_text(encoding="utf-8").strip()]
    return {
        "files": len(files),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
        "import arrows between files": len(found),
        "of these, through a wall between rooms": sum(room_of(one) != room_of(other) for one, other in found),
        "import arrows between rooms": len(between),
        "rooms": len({room_of(name) for pair in found for name in pair}),
        "longest parameter list": "{} ({})".format(*by_length[0]),
        "longest outside the command line": "{} ({})".format(*outside_cli[0]),
        "string-key subscripts": string_subscripts(folder),
    }


def _cli_files(folder: Path) -> set[str]:
    return {f"{path.name}:" for path in folder.rglob("*.py") if "cli" in path.relative_to(folder).as_posix()}


def main() -> None:
    """Print the measures of a folder, by default orchestrator/."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "orchestrator"
    print(pd.Series(measure(folder)).to_string())


if __name__ == "__main__":
    main()
