"""Options of a command line made from the fields of a config dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from flowers.config import flag


def options(config: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes each field of a config dataclass an option; one that is not given is None."""
    hints = typing.get_type_hints(config)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(config)):
            function = _option(field, hints[field.name])(function)
        return function

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[..., Any]:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    parameters: dict[str, Any] = {"help": f"{field.metadata['help']}  [default: {_shown(field)}]"}
    if hint is bool:
        parameters |= {"is_flag": True, "default": None}
    elif typing.get_origin(hint) is tuple:
        parameters |= {"type": float, "nargs": len(typing.get_args(hint))}
    elif field.metadata["choices"]:
        parameters["type"] = click.Choice(field.metadata["choices"])
    else:
        parameters["type"] = hint
    return click.option(flag(field.name), field.name, **parameters)


def _shown(field: dataclasses.Field[Any]) -> str:
    if isinstance(field.default, tuple):
        return " ".join(map(str, field.default))
    return str(field.metadata["absent"] if field.default in (None, False) else field.default)
