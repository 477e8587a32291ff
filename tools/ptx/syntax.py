"""What a PTX file says, as plain data: the parser writes it, the decoder reads it."""

from dataclasses import dataclass, field


class PtxError(Exception):
    """The PTX cannot be parsed or holds something that this interpreter does not know."""


@dataclass(frozen=True)
class Register:
    """A declared register. `name` is unique in its kernel: a scope's suffix is part of it."""

    name: str


@dataclass(frozen=True)
class Special:
    """A special register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """The address of a variable or parameter, or a label."""

    name: str


@dataclass(frozen=True)
class Integer:
    """An integer literal."""

    value: int


@dataclass(frozen=True)
class FloatBits:
    """A floating-point literal, by its bits: 0f3F800000 has size 4, 0d... has size 8."""

    bits: int
    size: int


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: "Register | Symbol | Integer"
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}."""

    items: "tuple[Operand, ...]"


@dataclass(frozen=True)
class Pair:
    """d|p: a destination and a predicate beside it."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True)
class Negated:
    """!p."""

    operand: "Operand"


@dataclass(frozen=True)
class Sink:
    """_: a result that nobody wants."""


Operand = (
    Register | Special | Symbol | Integer | FloatBits | Address | Vector | Pair | Negated | Sink
)


@dataclass(frozen=True)
class Location:
    """A line of the source that was compiled; `inlined_at` is where it was called from."""

    file: str
    line: int
    inlined_at: "Location | None" = None

    def __str__(self) -> str:
        here = f"{self.file}:{self.line}"
        return here if self.inlined_at is None else f"{here}, inlined at {self.inlined_at}"


@dataclass(frozen=True)
class Instruction:
    """One instruction. `parts`: the opcode split at its dots; `guard`: the predicate before it."""

    line: int
    text: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None
    guard_negated: bool = False
    source: Location | None = None

    @property
    def opcode(self) -> str:
        """The opcode with its modifiers, as written."""
        return ".".join(self.parts)


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter. `type` is None for a struct, an array of `size` bytes."""

    name: str
    type: str | None
    size: int
    align: int


@dataclass(frozen=True)
class Variable:
    """A variable in shared, local, global or const memory; `size` None: dynamic shared memory."""

    name: str
    space: str
    size: int | None
    align: int
    initial: bytes | None = None


@dataclass(eq=False)  # compared and hashed by identity: analyses of a kernel are cached
class Kernel:
    """One entry point."""

    name: str
    parameters: list[Parameter]
    line: int
    registers: dict[str, str] = field(default_factory=dict)  # unique name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)  # label -> index into instructions
    instructions: list[Instruction] = field(default_factory=list)
    directives: dict[str, str] = field(default_factory=dict)  # .maxntid and its like
