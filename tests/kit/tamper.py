"""Changes to protobuf messages, one at a time: every field of every message in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def variants(message: M) -> Iterator[tuple[str, M]]:
    """Yield (what was changed, the changed message): each set field changed, emptied, dropped, doubled or reordered."""
    for path, change in _changes(message, ""):
        copy = type(message)()
        copy.CopyFrom(message)
        change(copy)
        yield path, copy


def _changes(message: Message, prefix: str) -> Iterator[tuple[str, Any]]:
    for field, value in message.ListFields():
        name = f"{prefix}{field.name}"
        if field.is_repeated:
            yield from _list_changes(field.name, name, value)
        elif isinstance(value, Message):
            for path, inner in _changes(value, f"{name}."):
                yield path, (lambda copy, f=field.name, g=inner: g(getattr(copy, f)))
        else:
            for label, other in _others(value):
                yield f"{name} {label}", (lambda copy, f=field.name, v=other: setattr(copy, f, v))


def _list_changes(attribute: str, name: str, values: Any) -> Iterator[tuple[str, Any]]:
    def of(copy: Message) -> Any:
        return getattr(copy, attribute)

    yield f"{name} emptied", lambda copy: copy.ClearField(attribute)
    for index, value in enumerate(values):
        at = f"{name}[{index}]"
        yield f"{at} dropped", lambda copy, i=index: of(copy).pop(i)
        if isinstance(value, Message):
            for path, inner in _changes(value, f"{at}."):
                yield path, (lambda copy, i=index, g=inner: g(of(copy)[i]))
        else:
            for label, other in _others(value):
                yield f"{at} {label}", (lambda copy, i=index, v=other: of(copy).__setitem__(i, v))
    if len(values) > 1:

        def reverse(copy: Message) -> None:
            turned = list(of(copy))[::-1]
            copy.ClearField(attribute)
            of(copy).extend(turned)

        yield f"{name} reversed", reverse


def _others(value: object) -> Iterator[tuple[str, object]]:
    """Other values of the same type: empty, and near ones."""
    match value:
        case bytes():
            yield "emptied", b""
            step = max(1, len(value) // 12)
            for position in {*range(0, len(value), step), len(value) - 1}:
                yield (
                    f"flipped at {position}",
                    value[:position] + bytes([value[position] ^ 0x01]) + value[position + 1 :],
                )
        case str():
            yield "emptied", ""
            yield "changed", value[:-1] + ("b" if value[-1:] == "a" else "a")
        case bool():
            yield "negated", not value
        case int():
            yield "plus one", value + 1
            yield "zero", 0
        case _:
            raise AssertionError(f"no change is known for {value!r}")


def flips(data: bytes, bits: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield (position, the bytes with one bit of that byte changed): every byte, `bits` of its bits, spread evenly."""
    for position in range(len(data)):
        for number in range(bits):
            changed = bytearray(data)
            changed[position] ^= 1 << (position * 3 + number * 5) % 8
            yield position, bytes(changed)
