"""The one layer of configuration: command line and gin files in, objects out, and every mistake in one line.

--gin_file=FILE            may be given several times; later files win
--gin.NAME=VALUE           overrides a macro or `configurable.parameter`; a bare word is taken as a string
--gin_search_paths=A,B     where FILE and its includes are looked for, beside the working directory

gin's own file reader forgets on which line a value was set, and its errors span lines without naming the nearest
valid name. So files are read here, statement by statement with gin's parser, and bound by gin's `bind_parameter`.
"""

import argparse
import difflib
import functools
import importlib
import inspect
import json
import os
import tokenize
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

import gin
from gin import config_parser
from t5x_lite.doors import Flags, first_line, parse_flags, run_door
from t5x_lite.errors import UserError, nearest

__all__ = ["as_json", "build", "load", "load_run", "parse", "parse_flags", "register", "run_door", "write_config"]

_GIN_FOLDER = Path(__file__).resolve().parent.parent / "gin"
_MACRO = "gin.macro"
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}

# (scope, configurable, parameter), as gin keys its bindings; a macro is (its name, _MACRO, "value").
Key = tuple[str, str, str]

_where: dict[Key, str] = {}  # where each binding that gin now holds was set: "file:line", or the flag that set it


def parse(
    argv: Sequence[str], doc: str, flags: Flags = lambda parser: None, others: str | None = None
) -> argparse.Namespace:
    """As `parse_flags`, and gives gin the files and overrides of the command line.

    Raises UserError for everything that a user can get wrong in them.
    """

    def with_gin(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gin_file", action="append", required=True, metavar="FILE", help="repeatable")
        parser.add_argument("--gin_search_paths", default="", metavar="A,B", help="more folders of gin files")
        flags(parser)

    overrides = [word for word in argv if word.startswith("--gin.")]
    args = parse_flags([word for word in argv if not word.startswith("--gin.")], doc, with_gin, others)
    load(args.gin_file, overrides, [path for path in args.gin_search_paths.split(",") if path])
    return args


# ---------------------------------------------------------------------- gin in


def load(files: Sequence[str], overrides: Sequence[str] = (), search_paths: Sequence[str] = ()) -> None:
    """Gives gin the files, then the overrides, "--gin.NAME=VALUE"; forgets what it held before.

    Raises UserError for what cannot be found, read or bound, for a macro that is read and never set, for an
    override that nothing reads (a misspelt name would otherwise change nothing, silently), and for what is
    still REQUIRED.
    """
    gin.clear_config()
    _where.clear()
    _register()
    read: dict[str, None] = {}  # macros that anything refers to, even what is overridden later
    for file in files:
        path = _find(file, ["", *search_paths, str(_GIN_FOLDER.parent)], "--gin_file")
        _read_file(path, search_paths, read, ())
    for override in overrides:
        statement, where = _parse_override(override)
        _bind(statement, where, read)
    _check_macros(read)
    gin.finalize()


def load_run(model_dir: str) -> None:
    """Gives gin the configuration that a run folder was made with, wherever the folder is now."""
    path = os.path.join(model_dir, "config.gin")
    if not epath.Path(path).is_file():
        beside = Path(model_dir).parent.glob("*/config.gin")
        close = nearest(model_dir, [str(found.parent) for found in beside])
        raise UserError(f"--model_dir: {model_dir!r} is no run folder (no config.gin){close}")
    load([path], [f"--gin.train.model_dir={model_dir!r}"])


def text() -> str:
    """All that gin holds, for `restore` in another process."""
    return gin.config_str()


def restore(held: str) -> None:
    """Gives gin what `text` returned, unless it holds that already; where it came from is forgotten."""
    if gin.config_str() == held:
        return
    gin.clear_config()
    _where.clear()
    _register()
    gin.parse_config(held)


def _read_file(path: str, search_paths: Sequence[str], read: dict[str, None], parents: tuple[str, ...]) -> None:
    try:
        text = epath.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for statement, line in _statements(text, path):
        where = f"{path}:{line}"
        if isinstance(statement, config_parser.IncludeStatement):
            folders = [os.path.dirname(path), *search_paths, "", str(_GIN_FOLDER.parent), str(_GIN_FOLDER)]
            included = _find(statement.filename, folders, f"{where}: include")
            if included in (*parents, path):
                raise UserError(f"{where}: {included!r} includes itself; take one include away")
            _read_file(included, search_paths, read, (*parents, path))
        elif isinstance(statement, config_parser.ImportStatement):
            _import(statement, where)
        elif isinstance(statement, config_parser.BindingStatement):
            _bind(statement, where, read)
        else:  # the head of an indented block, whose bindings follow as statements of their own
            _configurable(statement.selector, where)


def _statements(text: str, file: str) -> Iterator[tuple[Any, int]]:
    """gin's statements and their lines. Raises UserError where the text is not gin."""
    # gin gives a stand-in for an unknown reference instead of an error; `_bind`, which knows the line, refuses it.
    delegate = gin.config.ParserDelegate(skip_unknown=True)
    line = 1
    try:
        for statement in config_parser.ConfigParser(text, delegate):
            line = statement.location.line_num
            yield statement, line
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None) or line
        lines = text.splitlines()
        shown = lines[line - 1].strip() if line <= len(lines) else ""
        said = "a bracket or quote is not closed" if isinstance(error, tokenize.TokenError) else first_line(error.msg)
        if said.startswith("malformed node"):  # of Python's own parser, with an address in it
            said = "a word that is no value"
        place = f"{file}:{line}" if file.endswith(".gin") else file
        raise UserError(
            f"{place}: cannot read {shown!r} ({said.rstrip('.')}); "
            'a line is NAME = value or configurable.parameter = value, with text in quotes: "text"'
        ) from None


def _bind(statement: config_parser.BindingStatement, where: str, read: dict[str, None]) -> None:
    key = _key(statement, where)
    for reference in _references(statement.value):
        if isinstance(reference, gin.config._UnknownConfigurableReference):
            _configurable(reference.selector, where)
        elif macro := _macro_name(reference):
            read[macro] = None
    gin.bind_parameter(key, statement.value)
    _where[key] = where


def _key(statement: config_parser.BindingStatement, where: str) -> Key:
    scope, selector, parameter, *_ = statement
    if not parameter:
        return (f"{scope}/{selector}" if scope else selector, _MACRO, "value")
    entry = _configurable(selector, where)
    parameters = inspect.signature(entry.wrapped).parameters
    takes_any = any(known.kind is known.VAR_KEYWORD for known in parameters.values())
    if parameter not in parameters and not takes_any:
        close = nearest(parameter, parameters) or f"; it has {', '.join(parameters)}"
        raise UserError(f"{where}: {selector} doesn't have a parameter named {parameter!r}{close}")
    return scope, entry.selector, parameter


def _configurable(selector: str, where: str) -> Any:
    """gin's entry of a registered name."""
    registry = gin.config._REGISTRY
    matches = registry.matching_selectors(selector)
    if len(matches) == 1:
        return registry[matches[0]]
    if matches:
        raise UserError(f"{where}: {selector!r} may be {' or '.join(sorted(matches))}; write one of them in full")
    names = [entry.name for key, entry in registry.items() if not key.startswith("gin.")]
    close = nearest(selector, names) or f"; there are {', '.join(names)}"
    raise UserError(f"{where}: no configurable {selector!r}{close}")


def _import(statement: config_parser.ImportStatement, where: str) -> None:
    if statement.module.startswith("__gin__"):
        raise UserError(f"{where}: dynamic registration is not there; take the line away and use registered names")
    try:
        importlib.import_module(statement.module)
    except ImportError as error:
        raise UserError(f"{where}: {statement.format()}: {error}; is its folder on PYTHONPATH?") from None
    gin.config._IMPORTS.add(statement)  # so that config.gin has the import too


def _parse_override(word: str) -> tuple[config_parser.BindingStatement, str]:
    """The binding that "--gin.NAME=VALUE" asks for; what is no gin value as a whole is text."""
    name, equals, text = word.removeprefix("--gin.").partition("=")
    where = f"command line: --gin.{name}"
    if not (name and equals):
        raise UserError(f"command line: {word!r} has no value; write --gin.NAME=VALUE")
    try:
        [(statement, _)] = _statements(f"{name} = {text}\n", where)
    except (UserError, ValueError):
        if text.startswith(tuple("@%[({'\"")):  # meant as gin
            raise
        [(statement, _)] = _statements(f"{name} = {text!r}\n", where)
    return statement, where


def _find(file: str, folders: Sequence[str], asked: str) -> str:
    for folder in folders:
        path = os.path.join(folder, file)
        if epath.Path(path).is_file():
            near = os.path.relpath(path)
            return path if "://" in path or near.startswith("..") else near
    inside = os.path.dirname(file)  # its neighbours are named with its own folder in front
    known = set()
    for folder in folders:
        known |= {os.path.relpath(path, folder or ".") for path in Path(folder).glob("*.gin")}
        known |= {os.path.relpath(path, folder or ".") for path in Path(folder).glob("*/*.gin")}
        known |= {os.path.join(inside, path.name) for path in Path(folder, inside).glob("*.gin")}
    looked = ", ".join(dict.fromkeys(folder or "." for folder in folders))
    raise UserError(f"{asked}: no file {file!r}{nearest(file, known)}; looked in {looked}")


# ---------------------------------------------------------------------- macros


def _references(value: Any) -> list[Any]:
    """References anywhere in a value: @name, @name(), %NAME, and gin's stand-ins for unknown names."""
    kinds = (gin.config.ConfigurableReference, gin.config._UnknownConfigurableReference)
    return [item for item in gin.config._iterate_flattened_values(value) if isinstance(item, kinds)]


def _macro_name(value: Any) -> str | None:
    is_macro = isinstance(value, gin.config.ConfigurableReference) and value.configurable.selector == _MACRO
    return "/".join(value.scopes) if is_macro else None


def _follow(key: Key) -> tuple[Key, Any]:
    """From a binding, over the macros that it names, to the binding that holds the value, and that value."""
    first, seen = key, {key}
    while macro := _macro_name(value := gin.config._CONFIG[key[:2]][key[2]]):
        key = (macro, _MACRO, "value")
        if key in seen:
            raise UserError(f"{_where[first]}: {macro} is set to itself; give it a value")
        seen.add(key)
    return key, value


def _check_macros(read: Mapping[str, None]) -> None:
    macros = [scope for scope, selector in gin.config._CONFIG if selector == _MACRO]
    for macro in macros:
        where = _where[macro, _MACRO, "value"]
        # A file may set what only another file reads, so there it must also look like a slip of the pen.
        if macro not in read and (where.startswith("command line") or difflib.get_close_matches(macro, read, 1, 0.85)):
            close = nearest(macro, read) or nearest(macro.upper(), read)
            raise UserError(f"{where}: nothing reads {macro!r}{close}")
    for key, where in _where.items():
        scope, selector, parameter = key
        name = scope if selector == _MACRO else f"{selector.rsplit('.', 1)[-1]}.{parameter}"
        for reference in _references(gin.config._CONFIG[scope, selector][parameter]):
            macro = _macro_name(reference)
            if macro and macro not in macros:
                close = nearest(macro, macros)
                raise UserError(
                    f"{where}: {macro} is not set; write {macro} = ... in a gin file, or --gin.{macro}=VALUE{close}"
                )
            if reference.selector == "gin.constant":  # the one constant is gin.REQUIRED
                raise UserError(f"{where}: {name} is REQUIRED and not set; give it a value, --gin.{name}=VALUE")
    for key in _where:
        _follow(key)


# ---------------------------------------------------------------------- objects out


def build(name: str, **arguments: Any) -> Any:
    """Calls the configurable of this name with what gin binds to it, and with `arguments` over that.

    Raises UserError for arguments that are missing, of a wrong type, or refused by the configurable.
    """
    try:
        return gin.get_configurable(name)(**arguments)
    except UserError as error:
        raise UserError(first_line(error)) from None


def value(name: str) -> Any:
    """What is bound to `configurable.parameter`, macros followed; None where nothing is."""
    selector, _, parameter = name.rpartition(".")
    key = ("", _configurable(selector, name).selector, parameter)
    return _follow(key)[1] if key in _where else None


def write_config(run_dir: str) -> None:
    """Writes config.gin (alone, it makes the run again) and config.json, for other tools; both whole or not at all."""
    for name, text in (("config.gin", gin.operative_config_str()), ("config.json", json.dumps(as_json(), indent=1))):
        unfinished = epath.Path(run_dir) / f"{name}.tmp"
        unfinished.write_text(text + "\n")
        unfinished.replace(epath.Path(run_dir) / name)


def as_json() -> dict[str, dict[str, Any]]:
    """{configurable: {parameter: value}} of what was used, and {"macros": {name: value}}.

    A macro's value stands for the macro; a reference (@name) is the text that gin writes for it.
    """
    found: dict[str, dict[str, Any]] = {}
    for (scope, selector), values in gin.config._OPERATIVE_CONFIG.items():
        name = selector.rsplit(".", 1)[-1]
        if selector == _MACRO:
            found.setdefault("macros", {})[scope] = _plain(values["value"])
        else:
            found[f"{scope}/{name}" if scope else name] = {key: _plain(value) for key, value in values.items()}
    return found


def _plain(value: Any) -> Any:
    if macro := _macro_name(value):
        return _plain(_follow((macro, _MACRO, "value"))[1])
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ---------------------------------------------------------------------- configurables


@functools.cache
def _register() -> None:
    """Gives gin the framework's names; here, so that the rooms themselves need no gin."""
    from t5x_lite.model import Lora, T5Config
    from t5x_lite.partitioning import make_partitioner
    from t5x_lite.planning.request import PlanConfig
    from t5x_lite.recommendation.data import recommendation_data
    from t5x_lite.training import optimizers
    from t5x_lite.training.run import TrainConfig
    from t5x_lite.training.schedules import learning_rate

    register("train", TrainConfig)
    register("plan", PlanConfig)
    register("T5Config", T5Config)
    register("Lora", Lora)
    register("Partitioner", make_partitioner)
    register("learning_rate", learning_rate)
    register("recommendation_data", recommendation_data)
    register("adafactor", optimizers.adafactor)
    register("adamw", optimizers.adamw)
    register("adamw_rms_scaled", optimizers.adamw_rms_scaled)


def register(name: str, fn: Callable) -> None:
    """Makes a function or dataclass configurable under this name, with its arguments' types checked."""
    gin.external_configurable(_checked(name, fn), name=name, module="t5x_lite")


def _checked(name: str, fn: Callable) -> Callable:
    """`fn`, whose missing and mistyped arguments, and a dataclass's ValueErrors, are UserErrors."""
    signature = inspect.signature(fn, eval_str=True)

    @functools.wraps(fn, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        for parameter in signature.parameters.values():
            if parameter.name in given:
                _check_type(name, parameter, given[parameter.name])
            elif parameter.default is parameter.empty and parameter.kind.name[:3] != "VAR":
                like = f"{name}.{parameter.name} = value"
                raise UserError(f"{name}: missing a required argument: {parameter.name!r}; bind it, like {like}")
        try:
            return fn(*args, **kwargs)
        except ValueError as error:
            if inspect.isclass(fn):
                raise UserError(str(error)) from None
            raise

    call.__signature__ = signature  # gin reads the defaults, which belong into config.gin, from here
    return call


def _check_type(name: str, parameter: inspect.Parameter, value: Any) -> None:
    if parameter.annotation is parameter.empty or _fits(value, parameter.annotation):
        return
    shown, place = value, ""
    scopes = gin.config.current_scope()
    for depth in range(len(scopes), -1, -1):  # the innermost scope that binds it is where it comes from
        key = ("/".join(scopes[:depth]), f"t5x_lite.{name}", parameter.name)
        if key in _where:
            key, shown = _follow(key)
            place = f"{_where[key]}: "
            break
    wanted = _describe(parameter.annotation) + ("; write () after it, to call it" if callable(value) else "")
    full = f"{name}.{parameter.name}"
    raise UserError(f"{place}{full} is {shown!r}, a {type(value).__name__}; it must be {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may stand where the hint is, its items included.

    gin has literals for lists and tuples both, so either stands for the other and for a Sequence; an int is a
    number, a bool is not. Hints that are not known here let everything through.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    kind = origin or (type(None) if hint is None else hint)
    if not inspect.isclass(kind):
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and _items_fit(value, kind, options)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, options[0]) and _fits(item, options[1]) for key, item in value.items() if options
        )
    return callable(value) if kind is Callable else isinstance(value, kind)


def _items_fit(items: Sequence[Any], kind: type, options: tuple[Any, ...]) -> bool:
    if kind is tuple and options and options[-1] is not Ellipsis:
        return len(items) == len(options) and all(map(_fits, items, options))
    return not options or all(_fits(item, options[0]) for item in items)


def _describe(hint: Any) -> str:
    """What a value must be to fit, in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, options))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, options))}"
    if hint is None or hint in _WORDS:
        return _WORDS[hint or type(None)]
    if inspect.isclass(hint) and origin is None:
        return f"a {hint.__name__}"
    return str(hint).replace("collections.abc.", "").replace("typing.", "")
