"""What the specifications of this toolkit's ONNX operators share: a node read, a node made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import onnx

DOMAIN = "metal_edge"


class NodeSpec:
    """The attributes of one operator; a subclass names it and knows them."""

    __slots__ = ()
    op_type: ClassVar[str]

    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        raise NotImplementedError

    @classmethod
    def from_attributes(cls, found: dict[str, Any]) -> Self:
        """Reads a node's attributes.

        Raises:
            ValueError: one is missing, unknown or senseless; names it.
        """
        raise NotImplementedError

    @classmethod
    def from_node(cls, node: onnx.NodeProto) -> Self:
        """Reads an ONNX node.

        Raises:
            ValueError: another operator, or see `from_attributes`.
        """
        from onnx import helper

        if (node.domain, node.op_type) != (DOMAIN, cls.op_type):
            raise ValueError(f"{node.name} is a {node.domain}::{node.op_type}")
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return cls.from_attributes(
            {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
        )

    def node(self, inputs: list[str], output: str, name: str) -> onnx.NodeProto:
        """The ONNX node with these attributes; `inputs` in the operator's order."""
        from onnx import helper

        return helper.make_node(
            self.op_type, inputs, [output], name, domain=DOMAIN, **self.attributes()
        )
