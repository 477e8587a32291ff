"""Which names of the package `tensorrt` the code uses, by reading its syntax trees.

A convention makes that possible: the package is called `trt` wherever it is passed along or kept
(`trt`, `self._trt`), or by the alias it is imported under. Two kinds of names are found:

* **chains** from the package, `trt.MemoryPoolType.WORKSPACE`: each must exist;
* **members**, `engine.num_io_tensors`: any attribute in a file that uses the package, but of what
  the file imports. Python does not say what `engine` is, so a member must exist in some class of
  TensorRT, or be one that the code itself or Python defines.

Names given as text to `hasattr` or `getattr` are meant to be missing somewhere: reported apart.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PACKAGE = "tensorrt"
_CALLED = {"trt", "_trt"}


@dataclass(slots=True)
class Uses:
    """Name -> the first places (file:line) where it is used."""

    chains: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)


def uses_in(sources: Iterable[tuple[str, str]]) -> Uses:
    """Collects over (file name, Python source) pairs; files without the package add nothing."""
    uses = Uses()
    for name, text in sources:
        tree = ast.parse(text, name)
        aliases = _aliases(tree)
        if any(_is_package(node, aliases) for node in ast.walk(tree)):
            _Collector(tree, aliases, name, uses).run()
    return uses


def sources_below(folder: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of all Python files."""
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder.parent).as_posix(), path.read_text(encoding="utf-8")


def defined_in(sources: Iterable[tuple[str, str]]) -> set[str]:
    """Names of functions, classes, fields and modules that the code itself brings."""
    found: set[str] = set()
    for name, text in sources:
        for node in ast.walk(ast.parse(text, name)):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    found.add(node.name)
                case ast.Attribute(ctx=ast.Store(), attr=attr):
                    found.add(attr)
                case ast.AnnAssign(target=ast.Name(id=target)):
                    found.add(target)
                case ast.Assign(targets=[ast.Name(id=target)]):
                    found.add(target)
                case _:
                    pass
    return found


def _aliases(tree: ast.AST) -> set[str]:
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == _PACKAGE
    }
    return imported | _CALLED


def _is_package(node: ast.AST, aliases: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in aliases
        case ast.Attribute(attr=attr):
            return attr in _CALLED
        case _:
            return False


def _imported(tree: ast.Module) -> set[str]:
    """Names of imported modules and what is imported out of them."""
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    aliases = [alias for node in imports for alias in node.names]
    return {alias.asname or alias.name.split(".")[0] for alias in aliases}


class _Collector:
    """Goes through one file."""

    def __init__(self, tree: ast.Module, aliases: set[str], file: str, uses: Uses) -> None:
        self.tree, self.aliases, self.file, self.uses = tree, aliases, file, uses
        self.others = _imported(tree) - aliases
        self.parts: set[int] = set()  # inner attributes of a chain already recorded as a whole

    def run(self) -> None:
        """Fills `uses`."""
        for node in ast.walk(self.tree):  # outer nodes come before inner ones
            if isinstance(node, ast.Attribute) and id(node) not in self.parts:
                self._attribute(node, f"{self.file}:{node.lineno}")
            elif isinstance(node, ast.Call):
                self._guarded(node, f"{self.file}:{node.lineno}")

    def _attribute(self, node: ast.Attribute, place: str) -> None:
        names: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute) and not _is_package(inner, self.aliases):
            self.parts.add(id(inner))
            names.insert(0, inner.attr)
            inner = inner.value
        if names and _is_package(inner, self.aliases):
            self.parts.add(id(inner))
            self.uses.chains.setdefault(".".join(names), place)
        elif not (isinstance(inner, ast.Name) and inner.id in self.others):
            for name in names:
                self.uses.members.setdefault(name, place)

    def _guarded(self, call: ast.Call, place: str) -> None:
        match call:
            case ast.Call(
                func=ast.Name(id="hasattr" | "getattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ):
                self.uses.optional.setdefault(name, place)
            case _:
                pass
