"""Read a serialized DALI pipeline: its operators, their devices and arguments.

DALI defines and serializes a graph for CUDA on a machine without one (2.4.0). The bytes are a
protocol buffer; the numbers of its fields are those of DALI's `dali.proto`. Nothing else of
DALI's inside is used.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operator:
    """One node: inputs are (name, device); arguments are raw values by name."""

    name: str
    device: str
    inputs: list[tuple[str, str]]
    arguments: dict[str, bytes]


@dataclass(frozen=True)
class SerializedPipeline:
    """The graph; outputs are (name, device)."""

    operators: list[Operator]
    outputs: list[tuple[str, str]]


def read_pipeline(data: bytes) -> SerializedPipeline:
    """Parse what `Pipeline.serialize()` returns."""
    operators, outputs = [], []
    for number, value in _fields(data):
        if number == 5:
            operators.append(_read_operator(value))
        elif number == 7:
            outputs.append(_read_edge(value))
    return SerializedPipeline(operators, outputs)


def _read_operator(data: bytes) -> Operator:
    name, inputs, arguments = "", [], {}
    for number, value in _fields(data):
        if number == 1:
            name = value.decode()
        elif number == 2:
            inputs.append(_read_edge(value))
        elif number == 4:
            argument = _fields(value)
            key = next(v for n, v in argument if n == 1).decode()
            # all fields but the name: type, values, lists of values
            arguments[key] = repr([(n, v) for n, v in argument if n != 1]).encode()
    device = _device_of(data)
    for varying in ("device", "preserve", "preserve_name", "seed", "name", "instance_name"):
        arguments.pop(varying, None)
    return Operator(name, device, inputs, arguments)


def _device_of(data: bytes) -> str:
    for number, value in _fields(data):
        if number == 4:
            argument = dict(_fields(value))
            if argument.get(1) == b"device":
                device: str = next(v.decode() for n, v in _fields(value) if n > 2 and v in DEVICES)
                return device
    return ""


DEVICES = (b"cpu", b"gpu", b"mixed")


def _read_edge(data: bytes) -> tuple[str, str]:
    fields = dict(_fields(data))
    return fields.get(1, b"").decode(), fields.get(2, b"").decode()


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """Return (number, value) of a protocol buffer message: ints and bytes."""
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value: Any
            value, at = _varint(data, at)
        else:
            if kind == 2:
                size, at = _varint(data, at)
            else:
                size = {5: 4, 1: 8}[kind]
            value, at = data[at : at + size], at + size
        found.append((number, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
