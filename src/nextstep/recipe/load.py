"""Recipe files: YAML in, a checked `Recipe` out, every complaint with the path of its key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from nextstep.errors import ModelFileError, NextStepError
from nextstep.utils.files import read_plain
from nextstep.utils.old_names import renamed_key, renamed_recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from nextstep.recipe.schema import Recipe

Plain = dict[str, Any]
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**17, 50, 50_000
"""Of a recipe file; the longest there are have some thousand bytes."""
TYPE_WORDS = {
    "int_type": "an integer", "int_from_float": "an integer", "float_type": "a number",
    "bool_type": "true or false", "string_type": "text", "list_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping", "finite_number": "a finite number",
}  # fmt: skip

_INSIDE = Path(__file__).parents[1] / "recipes"
RECIPES = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[3] / "recipes"
"""The recipes that ship: inside an installed package, else at the root of the repository."""
NAMES_A_KEY = re.compile(r"[a-z_.]+: ")


class RecipeError(NextStepError):
    """A recipe that cannot be used; the message names the file and the key."""


def recipe_file(name: str | Path) -> Path:
    """A recipe's file: a path, or the name of one that ships, such as pretrain-nano.

    Raises:
        NextStepError: when a bare name is neither.
    """
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != str(path):
        return path
    shipped = RECIPES / f"{path}.yaml"
    if not shipped.is_file():
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        near = difflib.get_close_matches(str(name), known, n=4, cutoff=0.5) or known
        raise NextStepError(
            f"there is no recipe '{name}'; give a YAML file, or a name such as {', '.join(near)}"
        )
    return shipped


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, with what it extends, and change single values.

    Args:
        path: the YAML file.
        overrides: "key.path=value" with the value in YAML, e.g. "data.sources[1].weight=2".

    Raises:
        RecipeError: naming the file, the key and what is wrong with it.
    """
    raw = read_yaml(Path(path))
    for override in overrides:
        apply_override(raw, override)
    check_extent(raw, str(path))
    return check_recipe(raw, str(path))


def check_recipe(raw: Plain, where: str) -> Recipe:
    """Plain values -> a checked recipe; `where` begins every complaint.

    Raises:
        RecipeError: for the first thing that is wrong.
    """
    from pydantic import ValidationError

    from nextstep.recipe.schema import Recipe

    _use_new_names(raw, where)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # A section that is wrong inside is also said to be wrong as a whole: the deepest comes first.
    first = max(found, key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    said = _complaint(first)
    # A complaint of a section as a whole names its key itself, as "overrides.vocab_size: ...".
    between = "." if first["type"] == "value_error" and NAMES_A_KEY.match(said) else ": "
    place = path_of(first["loc"])
    raise RecipeError(f"{where}: {place}{between if place else ''}{said}{more}")


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> Plain:
    """The mapping in a YAML file, laid over the one of the file it extends.

    Mappings are laid over each other key by key, everything else is replaced.

    Raises:
        RecipeError: when a file is missing, is no YAML mapping, names a key twice, or extends
            itself.
    """
    if path.resolve() in seen:
        raise RecipeError(f"{path}: extends itself")
    try:
        text = read_plain(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text") from None
    except ModelFileError as error:
        raise RecipeError(str(error)) from None
    try:
        raw = parse_yaml(text, str(path))
        check_extent(raw, str(path))
    except RecipeError:
        if not seen:
            raise
        raise RecipeError(f"{path} is no recipe") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    _use_new_names(raw, str(path))
    # A recipe of somebody else may extend any file of ours: nothing in it is shown.
    if seen and not set(raw) <= {*_keys_at(()), "extends"}:
        raise RecipeError(f"{path} is no recipe")
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str) or not base.endswith((".yaml", ".yml")):
        raise RecipeError(f"{path}: extends: must be the name of a .yaml file, not {base!r:.60}")
    if len(seen) >= MAX_DEPTH:
        raise RecipeError(f"{path}: more than {MAX_DEPTH} recipes extend each other")
    beside, shipped = path.parent / base, RECIPES / base
    ground = beside if beside.exists() or not shipped.is_file() else shipped
    return merged(read_yaml(ground, (*seen, path.resolve())), raw)


def _use_new_names(raw: Plain, where: str) -> None:
    try:
        renamed_recipe(raw)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def check_extent(raw: Any, where: str) -> None:
    """Refuse values that are nested too deep, without end, or too many once names are replaced.

    Raises:
        RecipeError: saying which.
    """
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size_of(value: Any, depth: int) -> int:
        """Values inside a value; what an alias repeats is counted each time, but visited once."""
        if not isinstance(value, dict | list):
            return 1
        if depth > MAX_DEPTH or id(value) in open_:
            raise RecipeError(f"{where}: values are nested too deep")
        if id(value) not in sizes:
            open_.add(id(value))
            inside = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size_of(one, depth + 1) for one in inside)
            open_.remove(id(value))
        if sizes[id(value)] > MAX_VALUES:
            raise RecipeError(f"{where}: holds more than {MAX_VALUES:,} values")
        return sizes[id(value)]

    size_of(raw, 0)


def merged(base: Plain, over: Plain) -> Plain:
    """`over` laid over `base`."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        out[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return out


def parse_yaml(text: str, where: str) -> Any:
    """YAML with the plain scalars of version 1.2: `1e-4` is a number, `no` is text.

    Raises:
        RecipeError: with the line of the mistake.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except RecursionError:
        raise RecipeError(f"{where}: values are nested too deep") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from None


def _loader() -> type:
    """A safe loader that refuses a key given twice and reads scalars as YAML 1.2 does."""
    import yaml

    class Yaml12Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - the name and form are PyYAML's

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            known: set[Hashable] = set()
            for node_of_key, _ in node.value:
                key = self.construct_object(node_of_key, deep=True)
                if not isinstance(key, Hashable) or key in known:
                    twice = f"the key '{key!s:.60}' is given twice"
                    raise yaml.MarkedYAMLError(
                        problem=twice if isinstance(key, Hashable) else "a key must be a text",
                        problem_mark=node_of_key.start_mark,
                    )
                known.add(key)
            return super().construct_mapping(node, deep)

    digits = list("-+.0123456789")
    for tag, pattern, first in (
        ("bool", r"true|false", list("tf")),
        ("null", r"null|~|", ["n", "~", ""]),
        ("int", r"[-+]?[0-9][0-9_]*", digits),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", digits),
    ):
        Yaml12Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), first
        )
    return Yaml12Loader


def apply_override(raw: Plain, override: str) -> None:
    """Set one value in place, e.g. "optimizer.learning_rate=1e-4"; new keys are allowed.

    Raises:
        RecipeError: when it is not of that form or its path leads nowhere.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"'{override}' changes nothing; write key.path=value")
    steps: list[str] = renamed_key(re.sub(r"\[(\d+)\]", r".\1", key)).split(".")
    value = parse_yaml(text, override)
    here: Any = raw
    for place, step in enumerate(steps):
        last = place + 1 == len(steps)
        if isinstance(here, list):
            if not step.isdigit() or int(step) >= len(here):
                raise RecipeError(f"{override}: '{step}' is none of the {len(here)} items there")
            at: Any = int(step)
        elif isinstance(here, dict):
            at = step
        else:
            raise RecipeError(f"{override}: '{'.'.join(steps[:place])}' is a value, no section")
        if last:
            here[at] = value
        elif isinstance(here, dict) and here.get(at) is None:
            here[at] = {}
        here = here[at]


def path_of(place: Iterable[int | str]) -> str:
    """("data", "sources", 1, "weight") -> "data.sources[1].weight"."""
    out = ""
    for step in place:
        out += f"[{step}]" if isinstance(step, int) else f"{'.' if out else ''}{step}"
    return out


def _complaint(error: ErrorDetails) -> str:
    """One of pydantic's findings in our words."""
    kind, context = error["type"], error.get("ctx", {})
    given = f", not {error['input']!r:.100}"
    if kind == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        said = f"unknown key; {f'did you mean {near[0]}?' if near else _choice(known)}"
    elif kind == "missing":
        said = "is missing"
    elif kind == "value_error":
        said = str(context["error"])
    elif kind == "too_short":
        said = f"needs at least {context['min_length']} item(s)"
    elif kind == "literal_error":
        said = f"must be {context['expected']}{given}"
    elif kind in TYPE_WORDS:
        said = f"must be {TYPE_WORDS[kind]}{given}"
    else:
        said = error["msg"].replace("Input should be", "must be") + given
    return said


def _choice(known: list[str]) -> str:
    return f"known are {', '.join(known)}" if known else "no keys are known here"


def _keys_at(place: Iterable[int | str]) -> list[str]:
    """Keys that the section at a path may have."""
    from nextstep.recipe.schema import Recipe

    model: Any = Recipe
    for step in place:
        if isinstance(step, str):
            field = getattr(model, "model_fields", {}).get(step)
            model = _section_in(field.annotation) if field else None
    return list(getattr(model, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """The section class inside an annotation such as `list[Section]` or `Section | None`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    inside = (_section_in(part) for part in get_args(annotation))
    return next((part for part in inside if part is not None), None)
