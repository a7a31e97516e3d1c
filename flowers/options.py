"""Options, each described once: a field of a pydantic model with its default, what may be given, and its help.

From it come the check with its one-line error, the command line (`flowers.cli.command`), and docs/cli.md.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, core_schema

from flowers import storage
from flowers.errors import InputError
from flowers.text import secret_of, without_secrets

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    result: bool | None = None,
    absent: str = "none",
    required: str = "",
    path: bool = False,
    names: tuple[str, ...] = (),
    alone: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    pattern: str | None = None,
) -> Any:
    """A field of an `OptionSet`.

    Args:
        default: its value when it is not given; `...` if it has to be given.
        help: what it does.
        group: starts a group of this title; later fields belong to it too.
        result: whether it changes what comes out, or only where and how that is computed.
        absent: words for the default on the command line where there is no value of one.
        required: words for what may be given, where no range or list of choices says it.
        path: whether it names a file or a folder, local or as a URI.
        names: what may be given for a path and is none.
        alone: what the option means on the command line without a value; "" if it needs one.
        ge: least value.
        gt: all values are above it.
        le: largest value.
        lt: all values are below it.
        pattern: regular expression for the whole text.
    """
    words = required or _range(ge, gt, le, lt)
    extra: dict[str, Any] = {"group": group, "result": result, "absent": absent, "required": words}
    extra |= {"path": path, "names": list(names), "alone": alone}
    return Field(default, description=help, ge=ge, gt=gt, le=le, lt=lt, pattern=pattern, json_schema_extra=extra)


@dataclass(frozen=True)
class OneOf:
    """Marks a text that is one of `names`, where these come from another module; else it is a Literal."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.names))


class OptionSet(BaseModel):
    """Options that belong together. Checked when made: a wrong value raises `InputError` naming its option."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, coerce_numbers_to_str=True
    )

    # Pydantic calls it for nested models and in `model_validate`, too: all ways to a model end in the same errors.
    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(type(self), values, error) from error
        for name, value in values.items():
            if isinstance(value, str) and (secret := secret_of(value)):
                raise InputError(
                    f"{flag(name)}: the address {without_secrets(value)!r} was given with {secret}, which any list of "
                    "processes shows; put it into the environment (AWS_ACCESS_KEY_ID, ...) or download the file before"
                )

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked like any other."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of an option.

    Attributes:
        name: of the field.
        help: what it does.
        group: title of the options it belongs to.
        result: whether it changes what comes out; None where nothing comes out.
        kind: int, float, bool or str.
        count: values it takes.
        choices: the texts that may be given; empty where others may.
        required: words for what may be given beyond `kind`, or "".
        default: words for its default.
        path: whether it names a file or a folder.
        names: what may be given for a path and is none.
        alone: what it means without a value, or "".
    """

    name: str
    help: str
    group: str
    result: bool | None
    kind: type
    count: int
    choices: tuple[str, ...]
    required: str
    default: str
    path: bool
    names: tuple[str, ...]
    alone: str

    @property
    def ranged(self) -> bool:
        """Whether it is a number with limits."""
        return self.kind in (int, float) and self.count == 1 and bool(self.required)

    @property
    def allowed(self) -> str:
        """Words for what may be given."""
        return ", ".join(filter(None, (_KINDS[self.kind] if self.ranged else "", self.required))) or _KINDS[self.kind]

    @property
    def metavar(self) -> str | None:
        """What stands for the value in the help; None for a flag."""
        if self.kind is bool:
            return None
        words = f"[{'|'.join(self.choices)}]" if self.choices else " ".join([_METAVARS[self.kind]] * self.count)
        return f"[{words}]" if self.alone else words


@functools.cache
def described(model: type[OptionSet]) -> Mapping[str, Option]:
    """All options of a model by name; those of a model inside it are among them."""
    found: dict[str, Option] = {}
    group = ""
    for name, field in model.model_fields.items():
        hint = field.annotation
        if isinstance(hint, type) and issubclass(hint, OptionSet):
            found |= described(hint)
            continue
        extra = field.json_schema_extra
        if not isinstance(extra, dict):
            raise TypeError(f"{model.__name__}.{name} is not made with `option`")
        group = str(extra["group"] or group)
        found[name] = _option(name, field, {**extra, "group": group})
    return types.MappingProxyType(found)


def flag(name: str) -> str:
    """The command-line spelling of a field's name."""
    return "--" + name.replace("_", "-")


def check_paths(model: type[OptionSet], values: Mapping[str, Any]) -> None:
    """Refuses what would be gone with the job: see `flowers.storage.in_working_copy`.

    Args:
        model: of the options.
        values: those that were given; of others the default counts.

    Raises:
        InputError: a path lies in the copy.
    """
    for name, known in described(model).items():
        if known.path:
            value, words = values.get(name), ""
            if value is None and name in model.model_fields:
                value, words = model.model_fields[name].default, "the default "
            if isinstance(value, str) and value not in known.names:
                check_path(flag(name), value, words)


def check_path(option: str, value: str, words: str = "") -> None:
    """The same for one path; `words` say where it comes from."""
    if storage.in_working_copy(value):
        raise InputError(
            f"{option}: {words}{value!r} lies in Ray's temporary copy of the folder that the job was submitted with, "
            "which Ray deletes; give an absolute path outside of it that all nodes see, or s3://BUCKET/FOLDER"
        )


def check_folder(option: str, uri: str, own: Collection[str], what: str) -> None:
    """Refuses a folder to write to in which somebody else has put something; hidden files do not count.

    Args:
        option: that names it, as on the command line.
        uri: the folder.
        own: names of files, one of which is in each folder that this job has written to.
        what: such a folder is.

    Raises:
        InputError: it holds other things, or is none.
    """
    try:
        found = storage.entry(uri)
        names = storage.names(uri) if found and found.folder else []
    except OSError as error:
        raise InputError(f"{option}: {uri} cannot be read: {error.strerror or error}") from error
    if found and not found.folder:
        raise InputError(f"{option}: {uri} is a file, required is a folder; choose another {option}")
    others = [name for name in names if name[0] != "." and not storage.is_left_over(name)]
    if others and not set(own) & set(names):
        raise InputError(f"{option}: {uri} holds {others[0]!r} and is no {what}; choose another {option}")


def check_file(option: str, uri: str, own: bytes, what: str) -> None:
    """Refuses a file to write that somebody else has made: one without the bytes `own`; otherwise as `check_folder`."""
    try:
        found = storage.entry(uri)
        ours = found is None or (not found.folder and own in storage.read(uri))
    except OSError as error:
        raise InputError(f"{option}: {uri} cannot be read: {error.strerror or error}") from error
    if not ours:
        raise InputError(f"{option}: {uri} is there and is no {what}; choose another {option}, or remove it")


def wrong(name: str, received: object, required: str) -> InputError:
    """The error of an option that does not fit, alone or to another one; of a flag nothing was received but itself."""
    what = "" if received is True else f"received {_shown(received)}, "
    return InputError(f"{flag(name)}: {what}required is {required}")


def said(value: object) -> str:
    """The value of an option as people gave it; a flag is given or not."""
    if value is None or isinstance(value, bool):
        return "given" if value else "not given"
    return _shown(value)


def _option(name: str, field: FieldInfo, extra: Mapping[str, Any]) -> Option:
    hint, count = field.annotation, 1
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    marks = field.metadata
    if get_origin(hint) is Annotated:
        hint, *inner = get_args(hint)
        marks = [*marks, *inner]
    if get_origin(hint) is tuple:
        count, hint = len(get_args(hint)), get_args(hint)[0]
    choices = next((mark.names for mark in marks if isinstance(mark, OneOf)), ())
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), str
    if not isinstance(hint, type) or hint not in _KINDS:
        raise TypeError(f"{name} is of a kind that no option has: {field.annotation}")
    return Option(
        name=name,
        help=str(field.description),
        group=extra["group"],
        result=extra["result"],
        kind=hint,
        count=count,
        choices=choices,
        required=f"one of {', '.join(choices)}" if choices else extra["required"],
        default=_default(field.get_default(), extra["absent"]),
        path=extra["path"],
        names=tuple(extra["names"]),
        alone=extra["alone"],
    )


def _default(value: Any, absent: str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return absent if value in (None, PydanticUndefined) else str(value)


def _range(ge: float | None, gt: float | None, le: float | None, lt: float | None) -> str:
    if ge is not None and le is not None:
        return f"{ge} to {le}"
    if ge is not None and lt is None:
        return f"{ge} or more"
    low = f"at least {ge}" if ge is not None else f"above {gt}" if gt is not None else ""
    high = f"at most {le}" if le is not None else f"below {lt}" if lt is not None else ""
    return " and ".join(filter(None, (low, high)))


def _explained(model: type[OptionSet], values: Mapping[str, Any], error: ValidationError) -> InputError:
    """The first thing that pydantic found wrong, in the form of all errors of options."""
    found = error.errors(include_url=False)[0]
    name, kind = str(found["loc"][0]), found["type"]
    if kind == "extra_forbidden":
        return InputError(f"{flag(name)}: there is no such option")
    if name not in values:
        return InputError(f"{flag(name)} is missing")
    known = described(model).get(name)
    if known is None:
        return wrong(name, values[name], "names of options with their values")
    said = str(found["ctx"]["error"]) if kind == "value_error" else ""
    no_number = known.ranged and kind.startswith(("int_", "float_"))
    return wrong(name, values[name], said or (known.allowed if no_number else known.required or known.allowed))


def _shown(received: object) -> str:
    return repr(" ".join(map(str, received)) if isinstance(received, (tuple, list)) else received)
