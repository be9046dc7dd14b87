"""The one layer of configuration: command line and gin files in, objects out, and every mistake in one line.

--gin_file=FILE            may be given several times; later files win
--gin.NAME=VALUE           overrides a macro or `configurable.parameter`; a bare word is taken as a string
--gin_search_paths=A,B     where FILE and its includes are looked for, beside the working directory
"""

import argparse
import ast
import difflib
import functools
import glob
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from t5x_lite.errors import UserError, nearest

_GIN_FOLDER = Path(__file__).resolve().parent.parent / "gin"
_DEFINED = re.compile(r"^([A-Za-z_]\w*)\s*=", re.MULTILINE)
_REFERRED = re.compile(r"%([A-Za-z_]\w*)(?![\w.])")
_LOCATION = re.compile(r'In file "([^"]+)", line (\d+)|\((?:\'|")?([^,]*?)(?:\'|")?, line (\d+)\)|line (\d+)')


Flags = Callable[[argparse.ArgumentParser], None]


def parse_flags(argv: Sequence[str], doc: str, flags: Flags) -> argparse.Namespace:
    """Reads a door's own flags. Raises UserError for an unknown one, with the nearest; prints help for --help."""
    parser = _Parser(prog=_prog(), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags(parser)
    return parser.parse_args(argv)


def parse(argv: Sequence[str], doc: str, flags: Flags = lambda parser: None) -> argparse.Namespace:
    """As `parse_flags`, and gives gin the files and overrides of the command line.

    Raises UserError for everything that a user can get wrong in them.
    """

    def with_gin(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="configuration; repeatable")
        parser.add_argument(
            "--gin_search_paths", default="", metavar="A,B", help="more folders to look for gin files in"
        )
        flags(parser)

    overrides = [word for word in argv if word.startswith("--gin.")]
    args = parse_flags([word for word in argv if not word.startswith("--gin.")], doc, with_gin)
    load(args.gin_file, overrides, [path for path in args.gin_search_paths.split(",") if path])
    return args


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, with the nearest flag."""

    def error(self, message: str):
        flags = [option for action in self._actions for option in action.option_strings]
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
        close = nearest(unknown, [*flags, "--gin.NAME"]) if message.startswith("unrecognized") else ""
        raise UserError(f"command line: {message}{close}; --help lists the flags")


def load(files: Sequence[str], overrides: Sequence[str] = (), search_paths: Sequence[str] = ()) -> None:
    """Gives gin the files, then the overrides, "--gin.NAME=VALUE"; forgets what it held before."""
    gin.clear_config()
    gin.config._FILE_READERS[1:] = []  # its reader of package resources logs an error for every folder it looks in
    _register()
    text = ""
    for file in files:
        # An include is looked for beside the file that is given, then where the package keeps its own.
        folders = [str(Path(file).parent), *search_paths, "", str(_GIN_FOLDER.parent), str(_GIN_FOLDER)]
        gin.config._LOCATION_PREFIXES[:] = folders
        path = os.path.abspath(_find(file, ["", *folders]))
        parsed = _gin(lambda path=path: gin.parse_config_file(path), path)
        text += _all_text(parsed, folders)
    defined = set(_DEFINED.findall(text))
    referred = dict.fromkeys(_REFERRED.findall(re.sub(r"#.*", "", text)))
    macros = {}
    for override in overrides:
        name, value = _override(override, {*defined, *referred})
        _gin(lambda name=name, value=value: gin.parse_config(f"{name} = {value}"), f"--gin.{name}={value}")
        macros[name] = value
    for name in referred:
        if name not in defined and name not in macros:
            raise UserError(
                f"{', '.join(files)}: {name} is not set; write {name} = ... in a gin file, or --gin.{name}=VALUE"
            )
    _gin(gin.finalize, ", ".join(files))


def load_run(model_dir: str) -> None:
    """Gives gin the configuration that a run folder was made with, wherever the folder is now."""
    path = os.path.join(model_dir, "config.gin")
    if not os.path.isfile(path):
        siblings = [str(folder) for folder in Path(model_dir).parent.glob("*") if (folder / "config.gin").is_file()]
        raise UserError(f"--model_dir: {model_dir!r} is no run folder (no config.gin){nearest(model_dir, siblings)}")
    load([path], [f"--gin.MODEL_DIR={model_dir}"])


def build(name: str, **arguments: Any) -> Any:
    """Calls the configurable of this name with what gin binds to it, and with `arguments` over that."""
    return _gin(lambda: gin.get_configurable(name)(**arguments), name)


def write_config(run_dir: str) -> None:
    """config.gin, which alone makes the run again, and config.json, the same for other tools; each written whole."""
    for name, text in (
        ("config.gin", gin.operative_config_str()),
        ("config.json", json.dumps(as_json(), indent=1)),
    ):
        path = os.path.join(run_dir, name)
        with open(path + ".tmp", "w") as file:
            file.write(text + "\n")
        os.replace(path + ".tmp", path)


def as_json() -> dict[str, dict[str, Any]]:
    """{configurable: {parameter: value}} of what was used; values that JSON has no word for as gin writes them."""
    found: dict[str, dict[str, Any]] = {}
    for (scope, selector), values in gin.config._OPERATIVE_CONFIG.items():
        short = selector.rsplit(".", 1)[-1]
        if short == "macro":
            found.setdefault("macros", {})[scope] = _plain(values.get("value"))
        else:
            found[short] = {name: _plain(value) for name, value in values.items()}
    return found


def run_door(main: Callable[[list[str]], None]) -> None:
    """Runs a door: a UserError becomes one line and status 2, Ctrl-C status 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{_prog()}: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


# ---------------------------------------------------------------------- configurables


@functools.cache
def _register() -> None:
    """Gives gin the framework's names; here, so that the rooms themselves need no gin."""
    from t5x_lite.model import T5Config
    from t5x_lite.partitioning import make_partitioner
    from t5x_lite.training import optimizers
    from t5x_lite.training.run import TrainConfig
    from t5x_lite.training.schedules import learning_rate

    configurables: dict[str, Callable] = {
        "train": TrainConfig,
        "T5Config": T5Config,
        "Partitioner": make_partitioner,
        "learning_rate": learning_rate,
        "adafactor": optimizers.adafactor,
        "adamw": optimizers.adamw,
        "adamw_rms_scaled": optimizers.adamw_rms_scaled,
    }
    for name, fn in configurables.items():
        register(name, fn)


def register(name: str, fn: Callable) -> None:
    """Makes a function or dataclass configurable under this name, with its arguments' types checked."""
    gin.external_configurable(_checked(name, fn), name=name, module="t5x_lite")


def _checked(name: str, fn: Callable) -> Callable:
    """`fn`, whose bad and missing arguments are the user's and so UserErrors."""
    hints = typing.get_type_hints(fn.__init__ if inspect.isclass(fn) else fn)
    signature = inspect.signature(fn)

    @functools.wraps(fn, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise UserError(f"{name}: {error}; bind it in a gin file, like {name}.parameter = value") from None
        for parameter, value in given.items():
            if parameter in hints and not _fits(value, hints[parameter]):
                wanted = _describe(hints[parameter])
                raise UserError(f"{name}.{parameter} is {value!r}, a {type(value).__name__}; it must be {wanted}")
        try:
            return fn(*args, **kwargs)
        except ValueError as error:
            raise UserError(str(error)) from None

    return call


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may stand where the hint is; only plain types and unions of them are looked at."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if origin in (tuple, list):
        return isinstance(value, list | tuple)
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return True


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    return names.get(hint, str(hint).replace("collections.abc.", "").replace("typing.", ""))


# ---------------------------------------------------------------------- files and overrides


def _find(file: str, folders: Sequence[str]) -> str:
    for folder in folders:
        if os.path.isfile(os.path.join(folder, file)):
            return os.path.join(folder, file)
    known = [str(Path(path)) for folder in {*folders, "."} for path in glob.glob(os.path.join(folder, "**/*.gin"))]
    known += [os.path.relpath(path) for path in glob.glob(str(_GIN_FOLDER / "**" / "*.gin"), recursive=True)]
    raise UserError(f"--gin_file: no file {file!r}{nearest(file, set(known))}; looked in {', '.join(_named(folders))}")


def _named(folders: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(folder or os.getcwd() for folder in folders))


def _all_text(parsed: Any, folders: Sequence[str]) -> str:
    """The text of a parsed file and of all that it includes."""
    text = Path(_find(parsed.filename, folders)).read_text() + "\n"
    return text + "".join(_all_text(include, folders) for include in parsed.includes)


def _override(word: str, known: set[str]) -> tuple[str, str]:
    """("NAME", gin text of the value) of "--gin.NAME=VALUE"; UserError for a macro that no file has."""
    name, equals, value = word.removeprefix("--gin.").partition("=")
    if not equals or not name:
        raise UserError(f"command line: {word!r} has no value; write --gin.NAME=VALUE")
    if known and "." not in name and name not in known:
        close = nearest(name, known) or nearest(name.upper(), known)
        raise UserError(f"command line: --gin.{name}: nothing reads {name!r}{close}")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if not value.startswith(("%", "@", "[", "(", "{")):  # references, and collections that may hold some
            value = repr(value)
    return name, value


def _gin(call: Callable, where: str) -> Any:
    """Runs gin; its errors, which span lines and lack a suggestion, become one line."""
    try:
        return call()
    except UserError as error:
        raise UserError(str(error).splitlines()[0]) from None
    except (ValueError, SyntaxError, OSError, RuntimeError, TypeError) as error:
        message = str(error)
        if not re.search(r"configurable|[Gg]in|line \d+|Unable to open|Macro|macro|[Rr]equired", message):
            raise
        raise UserError(_explain(message, where)) from None


def _explain(message: str, where: str) -> str:
    found = _LOCATION.search(message)
    if found:
        file, line = found.group(1) or found.group(3), found.group(2) or found.group(4) or found.group(5)
        where = f"{file or where}:{line}" if not where.startswith("--gin.") else where
    first = next(line.strip() for line in message.splitlines() if line.strip())
    first = re.sub(r"\s*\((?:[^()]*, )?line \d+\)$", "", first)
    return f"{where}: {first.rstrip('.')}{_suggest(first)}"


def _suggest(message: str) -> str:
    """The nearest configurable or parameter for the name that gin did not know."""
    names = {key.rsplit(".", 1)[-1]: entry for key, entry in gin.config._REGISTRY.items()}
    if found := re.search(r"No configurable matching(?: reference)? '?@?([\w./]+)", message):
        return nearest(found.group(1).split(".")[0], names)
    if found := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message):
        entry = names.get(found.group(1).rsplit(".", 1)[-1])
        if entry:
            return nearest(found.group(2), inspect.signature(entry.wrapped).parameters)
    if found := re.search(r"Unable to open file: ([^.]+\.gin)", message):
        shipped = [
            os.path.relpath(path, _GIN_FOLDER) for path in glob.glob(str(_GIN_FOLDER / "**/*.gin"), recursive=True)
        ]
        return nearest(found.group(1), shipped) or f"; shipped: {', '.join(difflib.get_close_matches('', shipped))}"
    return ""


def _plain(value: Any) -> Any:
    """A value as JSON has it, macros replaced by what they stand for."""
    if isinstance(value, gin.config.ConfigurableReference) and str(value).startswith("%"):
        return _plain(gin.query_parameter(str(value)))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _prog() -> str:
    return f"python -m t5x_lite.{Path(sys.argv[0]).stem}" if "t5x_lite" in sys.argv[0] else Path(sys.argv[0]).name
