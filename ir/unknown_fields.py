"""Fields that this version of ONNX's schema doesn't know, carried from proto to proto.

A file written with a newer schema has them anywhere; they belong to the message that
holds them, so they travel with what is kept of it (Protocol Buffers, "Unknown Fields").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
"""Wire types, in the order of their numbers."""


def has_unknown_fields(message: Message) -> bool:
    """Whether the message itself, not one nested in it, has fields that nobody knows."""
    return len(UnknownFieldSet(message)) > 0


def copy_unknown_fields(source: Message, target: Message) -> None:
    """Append the unknown fields of one message to another of the same type."""
    fields = UnknownFieldSet(source)
    if len(fields) > 0:
        target.MergeFromString(_encode(fields))


def _encode(fields: Iterable[Any]) -> bytes:
    encoded = bytearray()
    for field in fields:
        number, wire, data = field.field_number, field.wire_type, field.data
        encoded += varint(number << 3 | wire)
        if wire == _VARINT:
            encoded += varint(data)
        elif wire == _FIXED64:
            encoded += data.to_bytes(8, "little")
        elif wire == _FIXED32:
            encoded += data.to_bytes(4, "little")
        elif wire == _BYTES:
            encoded += varint(len(data)) + data
        elif wire == _START_GROUP:
            encoded += _encode(data) + varint(number << 3 | _END_GROUP)
    return bytes(encoded)


def varint(value: int) -> bytes:
    """A number in Protocol Buffers' base-128 encoding, as tags and lengths are written."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
