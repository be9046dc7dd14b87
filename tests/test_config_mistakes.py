"""Configuration in detail: where each mistake was made, what a bare word is, and what is written."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gin
from t5x_lite import config
from t5x_lite.errors import UserError

REPO = Path(__file__).resolve().parent.parent


class Oven:
    pass


@dataclasses.dataclass(frozen=True)
class Recipe:
    name: str
    minutes: int
    share: float = 0.5
    stir: bool = False
    oven: Oven | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    layers: tuple[str, ...] = ("dough", "sauce")
    order: Literal["first", "last"] = "first"
    taste: Callable | None = None
    rules: Sequence[tuple[str, int]] = ()

    def __post_init__(self):
        if self.minutes < 0:
            raise ValueError(f"minutes is {self.minutes}; time runs forward")


def make_oven(degrees: int = 180) -> Oven:
    if degrees > 1000:
        raise ValueError("this oven is broken")
    return Oven()


@pytest.fixture(scope="module", autouse=True)
def configurables():
    gin.clear_config()
    config.register("recipe", Recipe)
    config.register("make_oven", make_oven)


BASE = """
SHARE = 0.25   # a macro with a default
recipe.name = %NAME
recipe.minutes = %MINUTES
recipe.share = %SHARE
"""


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """A working directory with a base.gin that needs NAME and MINUTES, and a complete pizza.gin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(BASE)
    (tmp_path / "pizza.gin").write_text('include "base.gin"\nNAME = "pizza"\nMINUTES = 12\n')
    return tmp_path


def load_text(kitchen, text, *overrides):
    (kitchen / "own.gin").write_text(text)
    config.load(["own.gin"], overrides)


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


# ---------------------------------------------------------------------- what is right


def test_a_file_gives_the_object(kitchen):
    config.load(["pizza.gin"])
    assert config.build("recipe") == Recipe("pizza", 12, 0.25)


def test_an_override_wins_over_files_and_a_later_file_over_an_earlier(kitchen):
    (kitchen / "slow.gin").write_text("MINUTES = 90\nSHARE = 1\n")
    config.load(["pizza.gin", "slow.gin"], ["--gin.SHARE=0.75", "--gin.recipe.stir=True"])
    assert config.build("recipe") == Recipe("pizza", 90, 0.75, stir=True)


def test_build_takes_arguments_over_what_is_bound(kitchen):
    config.load(["pizza.gin"])
    assert config.build("recipe", minutes=1).minutes == 1


def test_loading_again_forgets_what_was_before(kitchen):
    config.load(["pizza.gin"], ["--gin.recipe.stir=True"])
    config.load(["pizza.gin"])
    assert not config.build("recipe").stir


def test_a_reference_that_is_called_gives_its_result(kitchen):
    load_text(kitchen, 'include "pizza.gin"\nrecipe.oven = @make_oven()\nmake_oven.degrees = 200\n')
    assert isinstance(config.build("recipe").oven, Oven)


def test_blocks_scopes_and_several_lines(kitchen):
    load_text(
        kitchen,
        'recipe:\n    name = "a"\n    minutes = 1\nslow/recipe.minutes = 60\nrecipe.sizes = {\n    "big": 3,\n}\n',
    )
    assert config.build("recipe") == Recipe("a", 1, sizes={"big": 3})
    assert config.build("slow/recipe").minutes == 60


def test_an_include_is_found_beside_its_file_in_search_paths_and_in_the_package(kitchen):
    (kitchen / "deep").mkdir()
    (kitchen / "deep" / "beside.gin").write_text('NAME = "beside"\n')
    (kitchen / "deep" / "cake.gin").write_text('include "beside.gin"\ninclude "time.gin"\ninclude "base.gin"\n')
    (kitchen / "more").mkdir()
    (kitchen / "more" / "time.gin").write_text("MINUTES = 5\n")
    (kitchen / "deep" / "sizes.gin").write_text('include "models/flan_t5_small.gin"\n')
    config.load(["deep/cake.gin"], search_paths=["more"])
    assert config.build("recipe") == Recipe("beside", 5, 0.25)
    config.load(["deep/sizes.gin"])
    assert config.build("T5Config").num_parameters == 76_961_152


def test_a_shipped_file_is_found_from_any_folder(kitchen):
    config.load(["gin/qa.gin"])
    assert config.build("T5Config").d_ff > 0


@pytest.mark.parametrize("file", sorted((REPO / "gin" / "models").glob("*.gin"), key=str), ids=lambda path: path.stem)
def test_every_shipped_model_is_a_model(file):
    config.load([str(file)])
    assert config.build("T5Config").num_parameters > 500_000


def test_a_module_that_a_file_imports_adds_its_configurables(kitchen, monkeypatch):
    (kitchen / "spices.py").write_text("import gin\n@gin.configurable\ndef pepper(grams=1): return grams\n")
    monkeypatch.syspath_prepend(str(kitchen))
    load_text(kitchen, "import spices\npepper.grams = 7\n")
    assert config.build("pepper") == 7
    assert "import spices" in gin.operative_config_str()


# ---------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    "text, value",
    [
        ("pizza", "pizza"),
        ("/tmp/run", "/tmp/run"),
        ("3run/x", "3run/x"),
        ("2026-11-23", "2026-11-23"),
        ("1 2", "1 2"),
        ("None of these", "None of these"),
        ("it's", "it's"),
        ("a=b", "a=b"),
        ("run#3", "run#3"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("", ""),
        ("1\nSHARE = 3", "1\nSHARE = 3"),
        ("'quoted'", "quoted"),
        ('"12"', "12"),
        ("%OTHER", "other"),
    ],
)
def test_a_bare_word_is_text(kitchen, text, value):
    load_text(
        kitchen, 'recipe.name = %NAME\nrecipe.minutes = 1\nOTHER = "other"\nrecipe.order = %OTHER', f"--gin.NAME={text}"
    )
    assert gin.query_parameter("NAME/gin.macro.value") == value or text == "%OTHER"
    gin.clear_config()


@pytest.mark.parametrize("text", ["None", "True", "12", "-3", "1e-4", "[1, 'a']", "{'inputs': 64}", "(1,)", "1_000"])
def test_a_gin_value_stays_one(kitchen, text):
    load_text(kitchen, "recipe.name = %NAME\n", f"--gin.NAME={text}")
    assert gin.query_parameter("NAME/gin.macro.value") == eval(text)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20))
@example("\\")
@example("\t1")
def test_any_text_is_its_gin_value_or_itself_or_refused_in_one_line(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.gin"
    file.write_text("recipe.name = %NAME\n")
    try:
        config.load([str(file)], [f"--gin.NAME={text}"])
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert text[0] in "@%[({'\""
    else:
        value = gin.query_parameter("NAME/gin.macro.value")
        assert not isinstance(value, str) or value == text or text.lstrip()[0] in "'\"rRbBuUfF"


# ---------------------------------------------------------------------- names and files that are not there


@pytest.mark.parametrize(
    "override, says",
    [
        ("--gin.MINUTE=5", "command line: --gin.MINUTE: nothing reads 'MINUTE'; nearest: 'MINUTES'"),
        ("--gin.minutes=5", "command line: --gin.minutes: nothing reads 'minutes'; nearest: 'MINUTES'"),
        ("--gin.recipe.minute=5", "recipe doesn't have a parameter named 'minute'; nearest: 'minutes'"),
        ("--gin.recipes.name=a", "command line: --gin.recipes.name: no configurable 'recipes'; nearest: 'recipe'"),
        ("--gin.recipe.oven=@make_ovn()", "--gin.recipe.oven: no configurable 'make_ovn'; nearest: 'make_oven'"),
        ("--gin.NAME=%SHAR", "command line: --gin.NAME: SHAR is not set; write SHAR = ... in a gin file"),
        ("--gin.NAME", "command line: '--gin.NAME' has no value; write --gin.NAME=VALUE"),
        ("--gin.recipe.sizes={'a': 1", "command line: --gin.recipe.sizes: cannot read"),
        ("--gin.2x=1", "command line: --gin.2x: cannot read"),
    ],
)  # fmt: skip
def test_a_wrong_override_names_the_nearest(kitchen, override, says):
    assert says in message(config.load, ["pizza.gin"], [override])


@pytest.mark.parametrize(
    "text, says",
    [
        ("recipe.minute = 5", "own.gin:1: recipe doesn't have a parameter named 'minute'; nearest: 'minutes'"),
        ("# x\n\nrecpe.name = 'a'", "own.gin:3: no configurable 'recpe'; nearest: 'recipe'"),
        ("recpe:\n    name = 'a'\n", "own.gin:1: no configurable 'recpe'; nearest: 'recipe'"),
        ("recipe:\n    name = 'a'\n    minuts = 3\n", "own.gin:3: recipe doesn't have a parameter named 'minuts'"),
        ("\nrecipe.oven = @make_ovens()", "own.gin:2: no configurable 'make_ovens'; nearest: 'make_oven'"),
        ("recipe.sizes = {'a': [@ove()]}", "own.gin:1: no configurable 'ove'"),
        ("MINUTES = 3\nrecipe.minutes = %MINUTE", "own.gin:1: nothing reads 'MINUTES'; nearest: 'MINUTE'"),
        ("recipe.minutes = %MINUTES", "own.gin:1: MINUTES is not set; write MINUTES = ... in a gin file"),
        ("recipe.minutes = %A\nA = %B\nB = %A", "own.gin:1: A is set to itself"),
        ("recipe.minutes = %gin.REQUIRED", "own.gin:1: recipe.minutes is REQUIRED and not set"),
        ("recipe.minutes = %M\nM = %gin.REQUIRED", "own.gin:2: M is REQUIRED and not set; give it a value, --gin.M="),
        ("recipe.name = pizza", "own.gin:1: cannot read 'recipe.name = pizza' (a word that is no value)"),
        ("recipe.minutes = 1\nrecipe.name 'a'", "own.gin:2: cannot read \"recipe.name 'a'\""),
        ("recipe.minutes = 1 2", "own.gin:1: cannot read 'recipe.minutes = 1 2'"),
        ("import no_such_module_at_all", "own.gin:1: import no_such_module_at_all: No module named"),
        ("from __gin__ import dynamic_registration", "own.gin:1: dynamic registration is not there"),
        ("recipe.stir = True\ninclude 'bas.gin'", "own.gin:2: include: no file 'bas.gin'; nearest: 'base.gin'"),
        ("include 'model/tiny.gin'", "own.gin:1: include: no file 'model/tiny.gin'; nearest: 'models/tiny.gin'"),
        ("include 'own.gin'", "own.gin:1: 'own.gin' includes itself"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_says_where(kitchen, text, says):
    said = message(load_text, kitchen, text)
    assert said.startswith(says)


@pytest.mark.parametrize(
    "text", ["recipe.sizes = {'a': 1\nrecipe.stir = True\n", 'recipe.name = "a\n', "recipe.name = '''a\n"]
)
def test_an_open_bracket_or_quote_is_one_line_with_its_place(kitchen, text):
    said = message(load_text, kitchen, text)
    assert said.startswith(("own.gin:1: cannot read", "own.gin:2: cannot read", "own.gin:3: cannot read"))


def test_a_mistake_in_an_included_file_names_that_file(kitchen):
    (kitchen / "base.gin").write_text("recipe.nam = 1\n")
    assert message(config.load, ["pizza.gin"]).startswith("base.gin:1: recipe doesn't have a parameter named 'nam'")


def test_two_files_that_include_each_other(kitchen):
    (kitchen / "a.gin").write_text("include 'b.gin'\n")
    (kitchen / "b.gin").write_text("include 'a.gin'\n")
    assert message(config.load, ["a.gin"]).startswith("b.gin:1: 'a.gin' includes itself")


def test_a_required_value_may_be_given_by_a_flag(kitchen):
    load_text(kitchen, "recipe.name = %NAME\nNAME = %gin.REQUIRED\nrecipe.minutes = 1", "--gin.NAME=soup")
    assert config.build("recipe").name == "soup"


def test_a_file_may_set_what_only_another_file_reads(kitchen):
    load_text(kitchen, "recipe.minutes = %MINUTES\nMINUTES = 3\nOVEN = @make_oven()\n")
    assert "nothing reads 'MINUTS'" in message(load_text, kitchen, "include 'pizza.gin'\nMINUTS = 3\n")


def test_a_macro_whose_reader_is_overridden_may_stay(kitchen):
    config.load(["pizza.gin"], ["--gin.recipe.share=1.0"])
    assert config.build("recipe").share == 1.0


def test_a_missing_file_names_the_nearest_and_where_it_looked(kitchen):
    said = message(config.load, ["piza.gin"])
    assert said.startswith("--gin_file: no file 'piza.gin'; nearest: 'pizza.gin'") and "looked in" in said
    said = message(config.load, ["gin/qqa.gin"])
    assert "nearest: 'gin/qa.gin'" in said


def test_a_name_that_two_modules_register(kitchen):
    with gin.unlock_config():
        gin.external_configurable(lambda a=1: a, name="recipe", module="other_kitchen")
    try:
        assert "may be other_kitchen.recipe or t5x_lite.recipe" in message(config.load, ["pizza.gin"])
    finally:
        gin.config._REGISTRY.pop("other_kitchen.recipe")


# ---------------------------------------------------------------------- values that do not fit


@pytest.mark.parametrize(
    "override, says",
    [
        ("--gin.MINUTES=abc", "command line: --gin.MINUTES: recipe.minutes is 'abc', a str; it must be a whole number"),
        ("--gin.MINUTES=1.5", "it must be a whole number"),
        ("--gin.MINUTES=True", "it must be a whole number"),
        ("--gin.NAME=12", "command line: --gin.NAME: recipe.name is 12, a int; it must be text"),
        ("--gin.SHARE=half", "recipe.share is 'half', a str; it must be a number"),
        ("--gin.recipe.stir=false", "--gin.recipe.stir: recipe.stir is 'false', a str; it must be True or False"),
        ("--gin.recipe.stir=1", "it must be True or False"),
        ("--gin.recipe.order=middle", "it must be one of 'first', 'last'"),
        ("--gin.recipe.sizes={'a': 'b'}", "recipe.sizes is {'a': 'b'}, a dict; it must be Mapping[str, int]"),
        ("--gin.recipe.sizes=[1]", "it must be Mapping[str, int]"),
        ("--gin.recipe.layers=dough", "it must be tuple[str, ...]"),
        ("--gin.recipe.layers=[1]", "it must be tuple[str, ...]"),
        ("--gin.recipe.rules=[('a', 1, 2)]", "it must be Sequence[tuple[str, int]]"),
        ("--gin.recipe.taste=sweet", "recipe.taste is 'sweet'"),
        ("--gin.recipe.oven=@make_oven", "recipe.oven is @make_oven, a function; it must be a Oven or None; write ()"),
        ("--gin.MINUTES=-1", "minutes is -1; time runs forward"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_place(kitchen, override, says):
    config.load(["pizza.gin"], [override])
    assert says in message(config.build, "recipe")


def test_a_wrong_value_of_a_file_has_its_line(kitchen):
    (kitchen / "pizza.gin").write_text('include "base.gin"\nNAME = "pizza"\nMINUTES = "long"\n')
    config.load(["pizza.gin"])
    assert message(config.build, "recipe").startswith("pizza.gin:3: recipe.minutes is 'long'")


@pytest.mark.parametrize(
    "override",
    [
        "--gin.SHARE=1",
        "--gin.recipe.layers=['a']",
        "--gin.recipe.layers=()",
        "--gin.recipe.oven=None",
        "--gin.recipe.oven=@make_oven()",
        "--gin.recipe.taste=@make_oven",
        "--gin.recipe.rules=[('a', 1), ['b', 2]]",
        "--gin.recipe.order=last",
    ],
)
def test_a_right_value_is_taken(kitchen, override):
    config.load(["pizza.gin"], [override])
    assert isinstance(config.build("recipe"), Recipe)


def test_a_value_that_is_missing(kitchen):
    load_text(kitchen, "recipe.minutes = 3")
    said = message(config.build, "recipe")
    assert said == "recipe: missing a required argument: 'name'; bind it, like recipe.name = value"


def test_a_failure_of_the_code_keeps_its_traceback(kitchen):
    """Only a dataclass's own refusal is the user's mistake; the ValueError of a function may be ours."""
    load_text(kitchen, "make_oven.degrees = 2000")
    with pytest.raises(ValueError, match="this oven is broken"):
        config.build("make_oven")


# ---------------------------------------------------------------------- what is written


def test_the_written_configuration_alone_makes_the_object_again(kitchen):
    text = 'include "pizza.gin"\nrecipe.oven = @make_oven()\nrecipe.sizes = {"a": 3}\nrecipe.rules = [("x", 1)]'
    load_text(kitchen, text, "--gin.SHARE=0.125")
    made = config.build("recipe")
    (kitchen / "run").mkdir()
    config.write_config("run")
    assert {path.name for path in (kitchen / "run").iterdir()} == {"config.gin", "config.json"}
    written = (kitchen / "run" / "config.gin").read_text()
    config.load(["run/config.gin"])
    again = config.build("recipe")
    assert dataclasses.replace(again, oven=None) == dataclasses.replace(made, oven=None)
    assert isinstance(again.oven, Oven)
    config.write_config("run")
    assert (kitchen / "run" / "config.gin").read_text() == written


def test_defaults_are_written_so_that_a_later_version_makes_the_same_run(kitchen):
    config.load(["pizza.gin"], ["--gin.recipe.oven=@make_oven()"])
    config.build("recipe")
    text = gin.operative_config_str()
    assert "make_oven.degrees = 180" in text and "recipe.order = 'first'" in text


def test_json_holds_plain_values(kitchen):
    load_text(kitchen, 'include "pizza.gin"\nrecipe.oven = @make_oven()\nrecipe.sizes = {"a": %MINUTES}\n')
    config.build("recipe")
    (kitchen / "run").mkdir()
    config.write_config("run")
    found = json.loads((kitchen / "run" / "config.json").read_text())
    assert found["macros"] == {"NAME": "pizza", "MINUTES": 12, "SHARE": 0.25}
    assert found["recipe"] == {
        "name": "pizza",
        "minutes": 12,
        "share": 0.25,
        "stir": False,
        "oven": "@make_oven()",
        "sizes": {"a": 12},
        "layers": ["dough", "sauce"],
        "order": "first",
        "taste": None,
        "rules": [],
    }
    assert found["make_oven"] == {"degrees": 180}


def test_a_folder_that_is_no_run_names_the_nearest(kitchen):
    (kitchen / "run1").mkdir()
    (kitchen / "run1" / "config.gin").write_text("")
    assert message(config.load_run, "run2") == ("--model_dir: 'run2' is no run folder (no config.gin); nearest: 'run1'")


def test_a_moved_run_is_read_where_it_is_now(kitchen):
    (kitchen / "12").mkdir()  # a name that gin would take for a number
    (kitchen / "12" / "config.gin").write_text("MODEL_DIR = 'old'\ntrain.model_dir = %MODEL_DIR\n")
    config.load_run("12")
    assert gin.query_parameter("train.model_dir") == "12"
