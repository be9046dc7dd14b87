"""Arguments of the application on Ray Serve; Ray itself is not installed here."""

import pytest

from launch.ray_serve import settings_of
from t5x_lite.errors import UserError
from t5x_lite.serving.settings import Settings


def test_arguments_are_settings_of_their_types(monkeypatch):
    monkeypatch.setenv("T5X_LITE_API_KEY", "secret")
    found = settings_of(
        {"model_dir": "runs/recommend", "max_batch": "32", "max_wait": "0.002", "catalogue": "items.csv"}
    )
    wanted = Settings(model_dir="runs/recommend", max_batch=32, max_wait=0.002, catalogue="items.csv", api_key="secret")
    assert found == wanted


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"model_dri": "run"}, "no argument 'model_dri'; nearest: 'model_dir'"),
        ({"model_dir": "run", "admin_anywhere": "False"}, "no argument 'admin_anywhere'"),
        ({"max_batch": "8"}, "no argument 'model_dir'; name a run folder"),
        ({"model_dir": "run", "max_batch": "many"}, "max_batch is 'many'; it must be a number"),
        ({"model_dir": "run", "max_queue": "0"}, "--max_queue is 0; it must be at least 1"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, says):
    with pytest.raises(UserError) as caught:
        settings_of(arguments)
    assert str(caught.value).startswith(says) and len(str(caught.value).splitlines()) == 1
