"""Parsers of the fields of a message: a JSON value goes in, a checked Python value comes out, or ``Violation``.

Standard library alone, since both ends use it. ``where`` is the path to the value, for the error message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Parser = Callable[[Any, str], Any]

NON_FINITE = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
"""JSON has no number for these; on the wire they are strings."""


class Violation(ValueError):
    """A message that breaks the protocol."""


def _expected(where: str, what: str, value: Any) -> Violation:
    shown = repr(value)
    return Violation(f"{where} must be {what}; got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def anything(value: Any, where: str) -> Any:
    """Any JSON value."""
    return value


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _expected(where, "a string", value)
    return value


def boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _expected(where, "true or false", value)
    return value


def integer(value: Any, where: str) -> int:
    """A JSON number without a fraction: 1.0 is an integer in JSON Schema. A bool is one in Python alone."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    raise _expected(where, "an integer", value)


def one_of(*allowed: str) -> Parser:
    """One of these strings."""

    def parse(value: Any, where: str) -> Any:
        if value not in allowed:
            raise _expected(where, f"one of {', '.join(allowed)}", value)
        return value

    return parse


def at_least(least: int) -> Parser:
    """An integer that is not below ``least``."""

    def parse(value: Any, where: str) -> int:
        number = integer(value, where)
        if number < least:
            raise _expected(where, f"an integer of at least {least}", value)
        return number

    return parse


def real(value: Any, where: str) -> float:
    """A JSON number, or one of the strings "inf", "-inf", "nan"."""
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    if type(value) not in (int, float):
        raise _expected(where, 'a number or one of "inf", "-inf", "nan"', value)
    try:
        return float(value)
    except OverflowError:
        raise _expected(where, "a number that a float64 can hold", value) from None


def optional(parser: Parser) -> Parser:
    """null, or what ``parser`` takes."""
    return lambda value, where: None if value is None else parser(value, where)


def sequence(parser: Parser) -> Parser:
    """A list whose items ``parser`` takes."""

    def parse(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _expected(where, "a list", value)
        return [parser(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return parse


def integers(least: int | None = None) -> Parser:
    """A list of integers, none below ``least``: the longest lists by far, so sound ones are not looked at in turn."""
    each = sequence(integer if least is None else at_least(least))

    def parse(value: Any, where: str) -> list[Any]:
        plain = isinstance(value, list) and set(map(type, value)) <= {int}
        if plain and (least is None or min(value, default=least) >= least):
            return list(value)
        return each(value, where)

    return parse


def pair(first: Parser, second: Parser) -> Parser:
    """A list of exactly two items."""

    def parse(value: Any, where: str) -> tuple[Any, Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise _expected(where, "a list of two items", value)
        return first(value[0], f"{where}[0]"), second(value[1], f"{where}[1]")

    return parse


def mapping(parser: Parser) -> Parser:
    """An object with any keys, whose values ``parser`` takes."""

    def parse(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected(where, "an object", value)
        return {key: parser(item, f"{where}.{key}") for key, item in value.items()}

    return parse


def record(required: Mapping[str, Parser], others: Mapping[str, Parser] | None = None) -> Parser:
    """An object with these fields and no further ones. The result holds the fields that were given."""
    known = {**required, **(others or {})}

    def parse(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected(where, "an object", value)
        if missing := [name for name in required if name not in value]:
            raise Violation(f"{where} lacks {', '.join(missing)}")
        if unknown := [name for name in value if name not in known]:
            raise Violation(f"{where} has unknown fields: {', '.join(unknown)}; known are: {', '.join(known)}")
        return {name: known[name](item, f"{where}.{name}") for name, item in value.items()}

    return parse


def built(make: Callable[..., Any], parser: Parser) -> Parser:
    """A record whose fields are the arguments of ``make``."""

    def parse(value: Any, where: str) -> Any:
        given = parser(value, where)
        try:
            return make(**given)
        except ValueError as error:
            raise Violation(f"{where}: {error}") from None

    return parse
