"""Finding and constructing the adapter that a command names. Standard library and the contract alone."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import operator
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from ..adapter import Choices, Engine, Precision


class Unusable(Exception):
    """The target is not an adapter that can be constructed; the message says why and names the way out."""


def construct(target: str, options: Mapping[str, str]) -> Engine:
    """Return the engine that ``module:Class`` or ``path/to/file.py:Class`` names, constructed with ``options``.

    Raises Unusable where target or options are wrong. What the module or the constructor raises passes through.
    """
    cls = engine_class(target)
    check_options(cls, options)
    engine = cls(**options)
    check_declarations(engine, target)
    return engine


def engine_class(target: str) -> type[Engine]:
    """Import the target and return its class."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise Unusable(f"{target!r} does not name an adapter. Write module:Class or path/to/file.py:Class.")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        near = difflib.get_close_matches(name, _adapters(module), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise Unusable(f"{place} has no {name!r}.{hint} {_classes_of(module)}") from None
    if not isinstance(found, type):
        raise Unusable(f"{target} is a {type(found).__name__}, not a class. {_classes_of(module)}")
    if not issubclass(found, Engine):
        raise Unusable(f"{target} is not a subclass of lmconform.adapter.Engine. {_classes_of(module)}")
    return found


def check_options(cls: type[Engine], options: Mapping[str, str]) -> None:
    """Raise Unusable if the constructor does not take these options, or needs further ones."""
    parameters = list(inspect.signature(cls).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = [p.name for p in named]
    listing = f"{cls.__name__} takes: {', '.join(takes)}." if takes else f"{cls.__name__} takes no options."
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in options:
            if key not in takes:
                near = difflib.get_close_matches(key, takes, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise Unusable(f"There is no option {key!r}.{hint} {listing}")
    if missing := [p.name for p in named if p.default is p.empty and p.name not in options]:
        raise Unusable(f"The option {missing[0]!r} is required: --option {missing[0]}=VALUE. {listing}")


def check_declarations(engine: Engine, target: str) -> None:
    """Raise Unusable if what the engine says of itself is not of the contract's types."""
    formats = get_args(get_type_hints(Engine)["format"])
    if not isinstance(engine.name, str) or not engine.name:
        raise Unusable(f"{target} has no name. Set the attribute `name` to a short string for reports.")
    if not isinstance(engine.version, str):
        raise Unusable(f"{target}.version is {engine.version!r}; a string was expected.")
    if engine.format not in formats:
        raise Unusable(f"{target}.format is {engine.format!r}; it may be one of: {', '.join(formats)}.")
    for attribute, cls in (("precision", Precision), ("choices", Choices)):
        if not isinstance(getattr(engine, attribute), cls):
            raise Unusable(f"{target}.{attribute} must be a lmconform.adapter.{cls.__name__}, built in the class body.")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Unusable(f"There is no file {path} (looked for from {Path.cwd()}).")
    # A name of its own: an adapter kept in transformers.py must not stand in for the library that it imports.
    name = f"lmconform_adapter_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise Unusable(f"{path} cannot be imported as a Python module.")
    _importable(str(path.resolve().parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise _lacks(str(path), error) from error
    return module


def _from_module(name: str) -> ModuleType:
    _importable(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            raise Unusable(
                f"There is no module {error.name!r} in the environment of {sys.executable}, nor in {Path.cwd()}. "
                "Install it there, name another interpreter with --python, or give the path of the file."
            ) from None
        raise _lacks(name, error) from error


def _lacks(name: str, error: ModuleNotFoundError) -> Unusable:
    return Unusable(
        f"{name} imports {error.name!r}, which is not installed in the environment of {sys.executable}. Install it "
        "there, or name another interpreter with --python."
    )


def _importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that files of the user's folder do not hide installed packages


def _adapters(module: ModuleType) -> list[str]:
    def is_adapter(value: Any) -> bool:
        return isinstance(value, type) and issubclass(value, Engine) and value is not Engine

    return [name for name, value in vars(module).items() if is_adapter(value)]


def _classes_of(module: ModuleType) -> str:
    names = _adapters(module)
    return f"Adapters in it: {', '.join(names)}." if names else "It holds no subclass of lmconform.adapter.Engine."
