"""The manifest: whole or not there, and a folder of another run refused with both values named."""

import copy
import json

import pytest

from t5x_lite import run_folder
from t5x_lite.errors import UserError

MANIFEST = {
    "format": 1,
    "model": {"d_model": 64, "activations": ("gelu", "linear"), "dtype": "float32", "remat": "none"},
    "lengths": {"inputs": 64, "targets": 16},
    "vocabulary": {"kind": "sentencepiece", "sha256": "aa11", "size": 4096},
    "templates_sha256": "bb22",
    "best_metric": None,
    "versions": {"jax": "0.10.1"},
    "git": None,
}


def changed(**fields):
    manifest = copy.deepcopy(MANIFEST)
    for name, value in fields.items():
        *parents, last = name.split("__")
        node = manifest
        for parent in parents:
            node = node[parent]
        node[last] = value
    return manifest


def test_what_was_written_is_read(tmp_path):
    run_folder.write_manifest(tmp_path / "runs" / "qa", MANIFEST)
    found = run_folder.read_manifest(tmp_path / "runs" / "qa")
    assert found["vocabulary"] == MANIFEST["vocabulary"]
    assert [path.name for path in (tmp_path / "runs" / "qa").iterdir()] == ["manifest.json"]


def test_a_write_that_fails_leaves_the_manifest_that_was_there(tmp_path):
    run_folder.write_manifest(tmp_path, MANIFEST)
    with pytest.raises(TypeError):
        run_folder.write_manifest(tmp_path, changed(git=object()))
    assert run_folder.read_manifest(tmp_path) == json.loads(json.dumps(MANIFEST))


def test_the_same_run_passes_though_json_made_lists_of_its_tuples(tmp_path):
    run_folder.write_manifest(tmp_path, MANIFEST)
    run_folder.check_manifest(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("versions", {"jax": "0.12.0"}),
        ("git", "abc"),
        ("best_metric", "em"),
        ("model__remat", "full"),
        ("model__dtype", "bfloat16"),
    ],
)
def test_how_a_run_is_computed_may_change(tmp_path, field, value):
    run_folder.write_manifest(tmp_path, MANIFEST)
    run_folder.check_manifest(tmp_path, changed(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("vocabulary__sha256", "cc33", ["vocabulary.sha256", "'aa11'", "'cc33'"]),
        ("templates_sha256", "dd44", ["templates_sha256", "'bb22'", "'dd44'"]),
        ("model__d_model", 512, ["model.d_model", "64", "512"]),
        ("lengths__targets", 32, ["lengths.targets", "16", "32"]),
        ("model__num_heads", 6, ["model.num_heads", "None", "6"]),
    ],
)
def test_another_run_is_refused_with_both_values(tmp_path, field, value, named):
    run_folder.write_manifest(tmp_path, MANIFEST)
    with pytest.raises(UserError) as error:
        run_folder.check_manifest(tmp_path, changed(**{field: value}))
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for part in named:
        assert part in message


def test_a_field_that_only_the_folder_has_is_a_difference(tmp_path):
    run_folder.write_manifest(tmp_path, MANIFEST | {"items_sha256": "ee55"})
    with pytest.raises(UserError, match="items_sha256 is 'ee55' there and None"):
        run_folder.check_manifest(tmp_path, MANIFEST)


def test_a_missing_folder_names_the_nearest(tmp_path):
    run_folder.write_manifest(tmp_path / "translate", MANIFEST)
    with pytest.raises(UserError, match=r"not a run folder .*nearest: 'translate'"):
        run_folder.read_manifest(tmp_path / "translat")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"text"'])
def test_a_damaged_manifest_is_a_users_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        run_folder.read_manifest(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    run_folder.write_manifest(tmp_path, MANIFEST | {"format": 2})
    with pytest.raises(UserError, match=r"format 2; this version of t5x_lite reads format 1"):
        run_folder.read_manifest(tmp_path)
