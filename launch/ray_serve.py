"""The server on Ray Serve, which starts replicas over the machines of a cluster and more of them under load.

serve run launch.ray_serve:application model_dir=/shared/runs/recommend max_replicas=8
python -m launch.ray_serve model_dir=runs/recommend         one machine, for a look

From the repository's root, with `pip install 'ray[serve]'` beside the `serve` extra. Arguments are fields of
`Settings`, and `min_replicas`, `max_replicas`, `cpus` of a replica; a key is T5X_LITE_API_KEY. Each replica is what
`python -m t5x_lite.serve` serves, with the same routes, batches and queue; Ray takes the place of its ports and
signals. Nobody can tell all replicas at once to reload: give `watch=60`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_lite import doors
from t5x_lite.errors import UserError, nearest
from t5x_lite.serving.settings import Settings, read_secret

_ARGUMENTS = ("model_dir", "catalogue", "max_batch", "max_wait", "max_queue", "max_k", "max_body", "timeout", "watch")


def settings_of(arguments: Mapping[str, str]) -> Settings:
    """Settings by their names, as texts. UserError for a name that there is not, and a value that cannot be."""
    fields = {field.name: field.type for field in dataclasses.fields(Settings) if field.name in _ARGUMENTS}
    for name in arguments:
        if name not in fields:
            raise UserError(f"no argument {name!r}{nearest(name, fields)}; there are {', '.join(fields)}")
    if "model_dir" not in arguments:
        raise UserError("no argument 'model_dir'; name a run folder that all machines see, as model_dir=/shared/run")
    values = {name: _value(name, fields[name], text) for name, text in arguments.items()}
    return Settings(**values, api_key=read_secret("--api_key_file", None, "T5X_LITE_API_KEY"))


def _value(name: str, kind: Any, text: str) -> Any:
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        raise UserError(f"{name} is {text!r}; it must be a number") from None


def application(arguments: Mapping[str, str]) -> Any:
    """What `serve run` runs."""
    from ray import serve

    arguments = dict(arguments)
    least, most = int(arguments.pop("min_replicas", 1)), int(arguments.pop("max_replicas", 1))
    cpus = float(arguments.pop("cpus", 2))
    settings = settings_of(arguments)

    def app():
        """Made in each replica, which serves no request before."""
        from t5x_lite import host

        host.keep_compiled_programs(on_accelerators=True)
        from t5x_lite.serving.app import create_app
        from t5x_lite.serving.served import Served

        return create_app(settings, served=Served.prepare(settings))

    deployment = serve.deployment(serve.ingress(app)()).options(
        name="t5x_lite",
        ray_actor_options={"num_cpus": cpus},
        # Ray's own queue is not bounded: what a replica cannot take is to reach it, and to get its 429.
        max_ongoing_requests=2 * (settings.max_batch + settings.max_queue),
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": settings.max_batch,
        },
        graceful_shutdown_timeout_s=settings.timeout + 5,
    )
    return deployment.bind()


def main(argv: list[str]) -> None:
    from ray import serve

    wrong = next((word for word in argv if "=" not in word), None)
    if wrong is not None:
        raise UserError(f"command line: {wrong!r} is no argument; write it as model_dir=runs/recommend")
    serve.run(application(dict(word.split("=", 1) for word in argv)), blocking=True)


if __name__ == "__main__":
    doors.run_door(main)
