"""Runs a function block of IEC 61131-3 Structured Text, from the tree that blark's grammar gives.

Only what portable function blocks need is offered: assignments, IF, CASE, FOR, RETURN, EXIT,
integers, BOOL, STRING, structures, arrays, and calls of a function block's own instances. What
is not offered raises StError: nothing is skipped in silence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import blark.transform as tree
from blark import parse_source_code

from tools.st.values import Array, StError, Structure, Type, array, elementary, structure

# A loop this long in one scan would trip a PLC's own watchdog.
MAX_STEPS = 100_000
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


class _Return(Exception):  # noqa: N818  (control flow, not an error)
    """RETURN."""


class _Exit(Exception):  # noqa: N818
    """EXIT."""


class Program:
    """A source file: its types and function blocks.

    Raises:
        StError: the source cannot be parsed, or declares what is not offered.
    """

    def __init__(self, path: Path) -> None:
        parsed = parse_source_code(path.read_text(encoding="utf-8"), fn=path)
        if parsed.exception is not None:
            raise StError(f"{path}: {parsed.exception}")
        self.types: dict[str, Type] = {}
        self.blocks: dict[str, tree.FunctionBlock] = {}
        for item in parsed.transform().items:
            if isinstance(item, tree.FunctionBlock):
                self.blocks[str(item.name)] = item
            elif isinstance(item, tree.DataTypeDeclaration):
                self._declare(item.declaration)
            else:
                raise StError(f"{path}: a {type(item).__name__} is not offered")

    def instance(self, name: str) -> FunctionBlock:
        """A new instance of one function block.

        Raises:
            StError: there is none of that name.
        """
        if name not in self.blocks:
            raise StError(f"there is no function block {name}")
        return FunctionBlock(self, self.blocks[name])

    def named_type(self, named: Any) -> Type:
        """An elementary type, or one of this file."""
        if isinstance(named, tree.StringTypeSpecification):
            if named.length is not None:
                raise StError("STRING with a length is not portable")
            return elementary("STRING")
        name = str(named)
        return self.types[name] if name in self.types else elementary(name)

    def _declare(self, declared: Any) -> None:
        if not isinstance(declared, tree.StructureTypeDeclaration):
            raise StError(f"a {type(declared).__name__} is not offered")
        fields: dict[str, Type] = {}
        for element in declared.declarations:
            for variable in element.variables:
                fields[str(variable.variable.name)] = self.named_type(element.init.spec.type)
        self.types[str(declared.name)] = structure(str(declared.name), fields)


class FunctionBlock:
    """One instance: call it with inputs, then read outputs in `values`."""

    def __init__(self, program: Program, declared: tree.FunctionBlock) -> None:
        self._program = program
        self._types: dict[str, Type] = {}
        self._inputs: set[str] = set()
        self._constants: set[str] = set()
        self.values: dict[str, Any] = {}
        for section in declared.declarations:
            self._declare(section)
        self._body = declared.body
        self._steps = 0

    def __call__(self, **inputs: Any) -> None:
        """One call: inputs that are not named keep their value, as on a PLC.

        Raises:
            StError: an input does not exist or does not fit; or the program does what a PLC
                would get wrong.
        """
        for name, value in inputs.items():
            if name not in self._inputs:
                raise StError(f"no input {name}")
            self.values[name] = self._types[name].check(value)
        self._steps = 0
        try:
            self._run(self._body)
        except _Return:
            return

    def _declare(self, section: Any) -> None:
        constant = "constant" in str(getattr(section, "attrs", "") or "").lower()
        for item in section.items:
            kind = self._type_of(item.init)
            start = getattr(item.init, "value", None)
            for declared in item.variables:
                name = str(declared.variable.name)
                self._types[name] = kind
                value = kind.initial() if start is None else kind.check(self._value(start))
                self.values[name] = value
                if isinstance(section, tree.InputDeclarations):
                    self._inputs.add(name)
                if constant:
                    self._constants.add(name)

    def _type_of(self, init: Any) -> Type:
        spec = init.spec
        if isinstance(spec, tree.ArraySpecification):
            (bounds,) = spec.subranges
            low, high = self._value(bounds.start), self._value(bounds.stop)
            return array(low, high, self._program.named_type(spec.type.type_name))
        return self._program.named_type(spec.type)

    def _run(self, statements: Any) -> None:
        for statement in [] if statements is None else statements.statements:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise StError("a loop without end")
            handler = _STATEMENTS.get(type(statement))
            if handler is None:
                raise StError(f"a {type(statement).__name__} is not offered: {statement}")
            handler(self, statement)

    def _assign(self, statement: tree.AssignmentStatement) -> None:
        value = self._value(statement.expression)
        for target in statement.variables:
            self._store(target, value)

    def _if(self, statement: tree.IfStatement) -> None:
        branches = [(statement.if_expression, statement.statements)]
        branches += [(other.if_expression, other.statements) for other in statement.else_ifs]
        for condition, body in branches:
            if self._truth(condition):
                self._run(body)
                return
        if statement.else_clause is not None:
            self._run(statement.else_clause.statements)

    def _case(self, statement: tree.CaseStatement) -> None:
        chosen = self._value(statement.expression)
        for case in statement.cases:
            if any(self._value(match) == chosen for match in case.matches):
                self._run(case.statements)
                return
        if statement.else_clause is not None:
            self._run(statement.else_clause.statements)

    def _for(self, statement: tree.ForStatement) -> None:
        if statement.step is not None:
            raise StError("FOR with BY is not offered")
        for number in range(self._value(statement.from_), self._value(statement.to) + 1):
            self._store(statement.control, number)
            try:
                self._run(statement.statements)
            except _Exit:
                return

    def _return(self, statement: tree.ReturnStatement) -> None:
        del statement
        raise _Return

    def _exit(self, statement: tree.ExitStatement) -> None:
        del statement
        raise _Exit

    def _store(self, target: Any, value: Any) -> None:
        if isinstance(target, tree.SimpleVariable):
            name = str(target.name)
            if name not in self._types or name in self._constants | self._inputs:
                raise StError(f"{name} cannot be assigned")
            self.values[name] = self._types[name].check(value)
            return
        holder = self._reach(target, target.elements[:-1])
        last = target.elements[-1]
        if isinstance(holder, Array):
            (subscript,) = last.subscripts
            place = holder.offset(self._value(subscript))
            holder.values[place] = holder.element.check(value)
        else:
            name = str(last.field.name)
            holder.values[name] = _field_type(holder, name).check(value)

    def _reach(self, variable: Any, elements: Any) -> Any:
        value = self._simple(variable.name)
        for element in elements:
            if isinstance(element, tree.SubscriptList):
                (subscript,) = element.subscripts
                if not isinstance(value, Array):
                    raise StError(f"{variable} is no array")
                value = value.values[value.offset(self._value(subscript))]
            else:
                name = str(element.field.name)
                _field_type(value, name)
                value = value.values[name]
        return value

    def _simple(self, variable: Any) -> Any:
        name = str(variable.name)
        if name not in self.values:
            raise StError(f"{name} is not declared")
        return self.values[name]

    def _truth(self, expression: Any) -> bool:
        value = self._value(expression)
        if type(value) is not bool:
            raise StError(f"{expression} is no BOOL")
        return value

    def _value(self, expression: Any) -> Any:
        reader = _EXPRESSIONS.get(type(expression))
        if reader is None:
            raise StError(f"a {type(expression).__name__} is not offered: {expression}")
        return reader(self, expression)

    def _unary(self, sign: str, expression: Any) -> Any:
        if sign == "NOT":
            return not self._truth(expression)
        if sign == "-":
            return -self._number(expression)
        raise StError(f"operator {sign} is not offered")

    def _binary(self, sign: str, left: Any, right: Any) -> Any:
        # IEC 61131-3 leaves open whether AND and OR look at both sides: they do here, so that
        # an index that is only valid in one branch is found.
        if sign in {"AND", "OR"}:
            both = (self._truth(left), self._truth(right))
            return all(both) if sign == "AND" else any(both)
        if sign in _COMPARE:
            a, b = self._value(left), self._value(right)
            if type(a) is not type(b) or (type(a) is bool and sign not in {"=", "<>"}):
                raise StError(f"{left} {sign} {right} compares different types")
            return _COMPARE[sign](a, b)
        if sign in _ARITHMETIC:
            return _ARITHMETIC[sign](self._number(left), self._number(right))
        raise StError(f"operator {sign} is not offered")

    def _number(self, expression: Any) -> int:
        value = self._value(expression)
        if type(value) is not int:
            raise StError(f"{expression} is no integer")
        return value


def _field_type(value: Any, name: str) -> Type:
    if not isinstance(value, Structure) or name not in value.types:
        raise StError(f"{value!r} has no field {name}")
    return value.types[name]


_STATEMENTS: Mapping[type, Callable[[FunctionBlock, Any], None]] = {
    tree.AssignmentStatement: FunctionBlock._assign,
    tree.IfStatement: FunctionBlock._if,
    tree.CaseStatement: FunctionBlock._case,
    tree.ForStatement: FunctionBlock._for,
    tree.ReturnStatement: FunctionBlock._return,
    tree.ExitStatement: FunctionBlock._exit,
}
_EXPRESSIONS: Mapping[type, Callable[[FunctionBlock, Any], Any]] = {
    tree.Integer: lambda _, e: int(str(e.value).replace("_", "")),
    tree.Boolean: lambda _, e: str(e.value).upper() == "TRUE",
    tree.String: lambda _, e: str(e.value)[1:-1],
    tree.ParenthesizedExpression: lambda block, e: block._value(e.expr),
    tree.MultiElementVariable: lambda block, e: block._reach(e, e.elements),
    tree.SimpleVariable: FunctionBlock._simple,
    tree.UnaryOperation: lambda block, e: block._unary(str(e.op).upper(), e.expr),
    tree.BinaryOperation: lambda block, e: block._binary(str(e.op).upper(), e.left, e.right),
}
