"""PTX text to `Module`: declarations, labels, instructions, with line numbers."""

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path

from tools.ptx.operands import parse_operand, split_operands
from tools.ptx.syntax import (
    Instruction,
    Kernel,
    Location,
    Operand,
    Parameter,
    PtxError,
    Register,
    Variable,
)
from tools.ptx.types import TYPES

_SPACE = re.compile(r"\s+")
_LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size|loc|file)\b([^\n]*)")
_ENTRY = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*\.(entry|func)\b")
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_INSTRUCTION = re.compile(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(shared|local|global|const)\b(?P<rest>.*)$"
)
_DECLARATOR = re.compile(
    r"(?:\.align\s+(?P<align>\d+)\s*)?(?:\.v(?P<vector>[24])\s*)?\.(?P<type>\w+)\s+"
    r"(?P<name>[\w$]+)\s*(?P<extents>(?:\[\d*\])*)\s*(?:=\s*(?P<initial>.*))?$"
)
_LOCATION = re.compile(r"\s*(\d+)\s+(\d+)\s+\d+(?:.*inlined_at\s+(\d+)\s+(\d+)\s+\d+)?")


@dataclass
class Module:
    """A parsed PTX file."""

    version: str = ""
    target: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> "Module":
        """Parses PTX; PtxError names the line that it does not understand."""
        return _Parser(text).parse()

    @staticmethod
    def load(path: Path) -> "Module":
        """Parses a file."""
        return Module.parse(path.read_text())

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; PtxError lists those that exist."""
        if name not in self.kernels:
            raise PtxError(f"no kernel {name!r}; there are {', '.join(self.kernels) or 'none'}")
        return self.kernels[name]


def _without_comments(text: str) -> str:
    """Comments become spaces, and lines stay where they are."""
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731
    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = _without_comments(text)
        self.line_ends = [match.start() for match in re.finditer("\n", self.text)]
        self.position = 0
        self.module = Module()
        self.kernel: Kernel | None = None
        self.scopes: list[dict[str, str]] = []  # name in the text -> unique name, innermost last
        self.files = {
            int(number): Path(name).name
            for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', self.text)
        }
        self.source: Location | None = None

    @property
    def line(self) -> int:
        return bisect_left(self.line_ends, self.position) + 1

    def error(self, message: str) -> PtxError:
        return PtxError(f"line {self.line}: {message}")

    def parse(self) -> Module:
        while self._skip_space():
            character = self.text[self.position]
            if character == "{":
                self._open_scope()
            elif character == "}":
                self._close_scope()
            elif match := _LINE_DIRECTIVE.match(self.text, self.position):
                self._line_directive(match[1], match[2].strip())
                self.position = match.end()
            elif self.text.startswith(".section", self.position):
                self._skip_braces()
            elif match := _ENTRY.match(self.text, self.position):
                self._function(match)
            elif match := _LABEL.match(self.text, self.position):
                self._label(match[1])
                self.position = match.end()
            else:
                self._statement()
        if self.scopes:
            raise self.error("the file ends inside a kernel")
        return self.module

    def _skip_space(self) -> bool:
        match = _SPACE.match(self.text, self.position)
        if match:
            self.position = match.end()
        return self.position < len(self.text)

    def _open_scope(self) -> None:
        if self.kernel is None:
            raise self.error("'{' outside of a kernel")
        self.scopes.append({})
        self.position += 1

    def _close_scope(self) -> None:
        if not self.scopes:
            raise self.error("'}' without '{'")
        self.scopes.pop()
        self.position += 1
        if not self.scopes:
            self.kernel = None
            self.source = None

    def _skip_braces(self) -> None:
        end = self.text.find("}", self.position)
        if end < 0:
            raise self.error("'}' is missing")
        self.position = end + 1

    def _line_directive(self, name: str, rest: str) -> None:
        if name == "version":
            self.module.version = rest
        elif name == "target":
            self.module.target = rest
        elif name == "loc" and (match := _LOCATION.match(rest)):
            caller = None
            if match[3]:
                caller = Location(self.files.get(int(match[3]), "?"), int(match[4]))
            self.source = Location(self.files.get(int(match[1]), "?"), int(match[2]), caller)

    def _function(self, match: re.Match[str]) -> None:
        end = min(e for e in (self._find("{"), self._find(";")) if e >= 0)
        header = " ".join(self.text[match.end() : end].split())
        if self.text[end] == ";":  # a declaration, of vprintf for example: calling it is the error
            self.position = end + 1
            return
        if match[1] == "func":
            raise self.error(f".func is not supported: {header[:60]}")
        found = re.match(r"([\w$]+)\s*(?:\(([^)]*)\))?(.*)$", header)
        if not found:
            raise self.error(f"cannot read the kernel header {header[:60]!r}")
        kernel = Kernel(found[1], self._parameters(found[2] or ""), self.line)
        for directive in found[3].split(".")[1:]:
            name, _, value = directive.strip().partition(" ")
            kernel.directives[name] = value
        self.module.kernels[kernel.name] = self.kernel = kernel
        self.position = end  # the brace opens the kernel's scope

    def _find(self, character: str) -> int:
        found = self.text.find(character, self.position)
        return found if found >= 0 else len(self.text)

    def _parameters(self, text: str) -> list[Parameter]:
        parameters = []
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            # `.ptr .global .align 16` after the type tells about the pointer's target, not about
            # the parameter
            plain = re.sub(r"\.ptr(\s+\.(global|shared|const|local))?(\s+\.align\s+\d+)?", "", part)
            match = re.match(
                r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d+)\])?$",
                " ".join(plain.split()),
            )
            if not match or match[2] not in TYPES:
                raise self.error(f"cannot read the parameter {part!r}")
            size = TYPES[match[2]].itemsize
            if match[4]:
                total = size * int(match[4])
                parameters.append(Parameter(match[3], None, total, int(match[1] or size)))
            else:
                parameters.append(Parameter(match[3], match[2], size, int(match[1] or size)))
        return parameters

    def _label(self, name: str) -> None:
        if self.kernel is None:
            raise self.error(f"label {name} outside of a kernel")
        if name in self.kernel.labels:
            raise self.error(f"label {name} twice")
        self.kernel.labels[name] = len(self.kernel.instructions)

    def _statement(self) -> None:
        end = self.text.find(";", self.position)
        if end < 0:
            raise self.error("';' is missing")
        line = self.line
        text = " ".join(self.text[self.position : end].split())
        if text.startswith(".reg"):
            self._registers(text)
        elif match := _VARIABLE.match(text):
            self._variable(match[1], match["rest"].strip())
        elif text.startswith(".pragma"):
            pass
        elif text.startswith("."):
            raise self.error(f"unknown directive: {text[:60]}")
        elif text:
            self._instruction(line, text)
        self.position = end + 1

    def _registers(self, text: str) -> None:
        match = re.match(r"\.reg\s+(?:\.v[24]\s+)?\.(\w+)\s+(.*)$", text)
        if not match or match[1] not in TYPES or not self.scopes or self.kernel is None:
            raise self.error(f"cannot read {text!r}")
        for item in match[2].split(","):
            name, _, count = item.strip().rstrip(">").partition("<")
            names = [f"{name}{i}" for i in range(int(count))] if count else [name]
            for each in names:
                unique = each
                while unique in self.kernel.registers:  # the same name in another scope
                    unique += "'"
                self.kernel.registers[unique] = match[1]
                self.scopes[-1][each] = unique

    def _variable(self, space: str, rest: str) -> None:
        match = _DECLARATOR.match(rest)
        if not match or match["type"] not in TYPES:
            raise self.error(f"cannot read the variable .{space} {rest[:60]!r}")
        element = TYPES[match["type"]].itemsize * int(match["vector"] or 1)
        extents = re.findall(r"\[(\d*)\]", match["extents"])
        size: int | None = element
        for extent in extents:
            size = None if extent == "" or size is None else size * int(extent)
        initial = None
        if match["initial"] is not None:
            initial = self._initial(match["initial"], match["type"], size or 0)
        variable = Variable(match["name"], space, size, int(match["align"] or element), initial)
        scope = self.module.variables if self.kernel is None else self.kernel.variables
        scope[variable.name] = variable

    def _initial(self, text: str, type_name: str, size: int) -> bytes:
        dtype = TYPES[type_name]
        data = bytearray()
        for item in filter(None, (piece.strip() for piece in text.strip("{} ").split(","))):
            literal = re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", item)
            try:
                value = int(literal[1], 16) if literal else int(item.rstrip("U"), 0)
            except ValueError:
                raise self.error(f"cannot read the initial value {item!r}") from None
            data += (value % (1 << 8 * dtype.itemsize)).to_bytes(dtype.itemsize, "little")
        return bytes(data.ljust(size, b"\0"))

    def _instruction(self, line: int, text: str) -> None:
        match = _INSTRUCTION.match(text)
        if not match or self.kernel is None:
            raise self.error(f"cannot read {text!r}")
        guard = self._resolve(match[2]) if match[2] else None
        if match[2] and guard is None:
            raise self.error(f"undeclared predicate {match[2]!r}")
        operands: list[Operand] = []
        for part in split_operands(match[4]):
            try:
                operands.append(parse_operand(part, self._resolve))
            except PtxError as error:
                raise self.error(f"{error} in {text!r}") from None
        self.kernel.instructions.append(
            Instruction(
                line=line,
                text=text,
                parts=tuple(match[3].split(".")),
                operands=tuple(operands),
                guard=guard,
                guard_negated=match[1] == "!",
                source=self.source,
            )
        )

    def _resolve(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return Register(scope[name])
        return None
