"""What the package uses of pydantic, in plain Python, for a machine that lacks it.

A machine with a GPU and no network has what its image holds. Put this folder on PYTHONPATH there,
and recipes and settings are read as with pydantic: the same defaults, the same conversions, and the
checks that the sections make themselves. Types and ranges are not checked, so it is for files that
were checked where pydantic is. Nothing imports it elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

MISSING: Any = object()
ConfigDict = dict


class ValidationError(ValueError):
    """A value that cannot be used."""

    def errors(self, **_: Any) -> list[dict[str, Any]]:
        """The one fault, as pydantic tells it."""
        context = {"error": str(self)}
        return [{"type": "value_error", "loc": (), "ctx": context, "msg": str(self), "input": None}]


@dataclasses.dataclass(eq=False)
class FieldInfo:
    """Default and type of a field."""

    default: Any = MISSING
    default_factory: Callable[[], Any] | None = None
    annotation: Any = None

    def value(self) -> Any:
        """The default."""
        return self.default_factory() if self.default_factory else self.default


def Field(  # noqa: N802 - pydantic's name
    default: Any = MISSING, *, default_factory: Callable[[], Any] | None = None, **_: Any
) -> Any:
    """A field's default; its limits are not checked."""
    return FieldInfo(default, default_factory)


@dataclasses.dataclass(frozen=True)
class AfterValidator:
    """In an annotation: what a value goes through."""

    check: Callable[[Any], Any]


def field_validator(*names: str) -> Callable[[Any], Any]:
    """Mark a class method that values of these fields go through."""
    return functools.partial(_marked, "field", names)


def model_validator(*, mode: str) -> Callable[[Any], Any]:
    """Mark what plain values go through before, or the finished section after."""
    return functools.partial(_marked, mode, ())


def _marked(mode: str, names: tuple[str, ...], method: Any) -> Any:
    method.validates = mode, names
    return method


class _Fields:
    """`model_fields`, read when it is asked for, since types may be named before they exist."""

    def __get__(self, _: object, owner: type) -> dict[str, FieldInfo]:
        return _fields_of(owner)


@functools.cache
def _fields_of(owner: type) -> dict[str, FieldInfo]:
    found = {}
    for name, annotation in get_type_hints(owner, include_extras=True).items():
        if name.startswith("model_"):
            continue
        given = getattr(owner, name, MISSING)
        info = given if isinstance(given, FieldInfo) else FieldInfo(given)
        found[name] = dataclasses.replace(info, annotation=annotation)
    return found


class BaseModel:
    """Named values, read from plain ones."""

    model_config: Any = {}  # noqa: RUF012 - pydantic's form
    model_fields: Any = _Fields()

    def __init__(self, **values: Any) -> None:
        for name, info in _fields_of(type(self)).items():
            value = (
                _converted(info.annotation, values.pop(name)) if name in values else info.value()
            )
            if value is MISSING:
                raise ValidationError(f"{name} is missing")
            self.__dict__[name] = value
        if values and self.model_config.get("extra") != "allow":
            raise ValidationError(f"unknown: {', '.join(sorted(values))}")
        self.__dict__.update(values)
        for method, (mode, names) in self._validators():
            for name in names:
                self.__dict__[name] = method.__get__(self, type(self))(self.__dict__[name])
            if mode == "after":
                method.__get__(self, type(self))()

    @classmethod
    def _validators(cls) -> list[tuple[Any, tuple[str, tuple[str, ...]]]]:
        members = [m for owner in reversed(cls.__mro__) for m in vars(owner).values()]
        return [(m, m.validates) for m in members if hasattr(m, "validates")]

    @classmethod
    def model_validate(cls, raw: Any) -> Any:
        """A section from plain values."""
        if isinstance(raw, cls):
            return raw
        for method, (mode, _) in cls._validators():
            if mode == "before":
                raw = method.__get__(None, cls)(raw)
        if not isinstance(raw, dict):
            raise ValidationError(f"must be a mapping, not {raw!r:.60}")
        return cls(**raw)

    @classmethod
    def model_validate_json(cls, text: str) -> Any:
        """A section from JSON."""
        return cls.model_validate(json.loads(text))

    def model_copy(self, update: dict[str, Any]) -> Any:
        """A copy with other values."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__ | update)
        return made

    def model_dump(self, mode: str = "python", **_: Any) -> dict[str, Any]:
        """Plain values."""
        return _plain(self, mode == "json")


def _plain(value: Any, as_json: bool) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(one, as_json) for name, one in value.__dict__.items()}
    if isinstance(value, dict):
        return {name: _plain(one, as_json) for name, one in value.items()}
    if isinstance(value, list | tuple):
        made = [_plain(one, as_json) for one in value]
        return made if as_json or isinstance(value, list) else tuple(made)
    return value


class TypeAdapter:
    """Reads JSON as a type."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def validate_json(self, text: str, **_: Any) -> Any:
        """The value in a JSON text."""
        return _converted(self.kind, json.loads(text))


def _converted(kind: Any, value: Any) -> Any:  # noqa: PLR0911 - one branch for a kind of type
    """A plain value as a type says: sections, dataclasses, tuples of lists, floats of integers."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _converted(inner[0], value)
        for one in inner[1:]:
            value = one.check(value) if isinstance(one, AfterValidator) else value
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _first(inner, value)
    if origin is Literal and value not in inner:
        raise ValidationError(f"must be one of {', '.join(map(str, inner))}, not {value!r:.60}")
    if origin is list:
        return [_converted(inner[0], one) for one in value]
    if origin is tuple:
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_converted(one, item) for one, item in zip(each, value, strict=True))
    if origin is dict:
        return {_converted(inner[0], k): _converted(inner[1], v) for k, v in value.items()}
    if not isinstance(kind, type):
        return value
    if issubclass(kind, BaseModel):
        return kind.model_validate(value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind, include_extras=True)
        return kind(**{name: _converted(hints[name], one) for name, one in value.items()})
    return float(value) if kind is float and type(value) is int else value


def _first(kinds: tuple[Any, ...], value: Any) -> Any:
    """The value as the first of some types that can take it."""
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _converted(kind, value)
        except (TypeError, ValueError, AttributeError) as error:
            last = error
    raise last
