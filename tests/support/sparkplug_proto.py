"""Google's own decoder for Sparkplug B, from the field numbers of the Tahu schema.

Nothing here comes from the code under test.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TYPES = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "float": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
}
METRIC = (
    ("name", 1, "string"),
    ("alias", 2, "uint64"),
    ("timestamp", 3, "uint64"),
    ("datatype", 4, "uint32"),
    ("is_historical", 5, "bool"),
    ("is_transient", 6, "bool"),
    ("is_null", 7, "bool"),
)
VALUES = (
    ("int_value", 10, "uint32"),
    ("long_value", 11, "uint64"),
    ("float_value", 12, "float"),
    ("double_value", 13, "double"),
    ("boolean_value", 14, "bool"),
    ("string_value", 15, "string"),
    ("bytes_value", 16, "bytes"),
)
PAYLOAD = (
    ("timestamp", 1, "uint64"),
    ("seq", 3, "uint64"),
    ("uuid", 4, "string"),
    ("body", 5, "bytes"),
)


def _payload_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="sparkplug_b_test.proto", package="test.sparkplug", syntax="proto2"
    )
    optional = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    metric.oneof_decl.add(name="value")
    for name, number, kind in METRIC:
        metric.field.add(name=name, number=number, type=TYPES[kind], label=optional)
    for name, number, kind in VALUES:
        metric.field.add(name=name, number=number, type=TYPES[kind], label=optional, oneof_index=0)
    for name, number, kind in PAYLOAD:
        payload.field.add(name=name, number=number, type=TYPES[kind], label=optional)
    payload.field.add(
        name="metrics",
        number=2,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".test.sparkplug.Payload.Metric",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.sparkplug.Payload"))


Payload = _payload_class()


def decode(payload: bytes) -> Any:
    """A Payload; nothing in it may be unknown."""
    message = Payload()
    message.ParseFromString(payload)
    assert message.SerializeToString(deterministic=True), "an empty message"
    known = Payload()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    assert known == message, "unknown fields"
    return message


def values(message: Any) -> dict[str, Any]:
    """Metric values by name; None where is_null."""
    found = {}
    for metric in message.metrics:
        kind = metric.WhichOneof("value")
        assert metric.is_null == (kind is None), metric
        assert metric.name not in found, "a metric twice"
        found[metric.name] = None if kind is None else getattr(metric, kind)
    return found
