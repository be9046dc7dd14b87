"""Serves a trained run over HTTP: recommendations, answers, translations, and a page at /. See docs/serving.md.

python -m t5x_lite.serve --model_dir=runs/recommend --port=8000
curl localhost:8000/v1/recommend -H 'Content-Type: application/json' -d '{"history": ["Toy Story"], "k": 5}'
"""

from t5x_lite import doors, host
from t5x_lite.errors import UserError


def main(argv: list[str]) -> None:
    def flags(parser):
        add = parser.add_argument
        add("--model_dir", required=True, help="run folder, or any model that infer takes")
        add("--catalogue", help="an items.csv: exactly what is offered, in place of the run's own list")
        add("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine alone")
        add("--port", type=int, default=8000, help="default: 8000")
        add("--max_batch", type=int, default=16, help="requests that run together; default: 16")
        add("--max_wait_ms", type=float, default=1.0, help="how long a request waits for others; default: 1")
        add("--max_queue", type=int, default=64, help="requests that may wait; more get 429; default: 64")
        add("--max_k", type=int, default=50, help="longest list; default: 50")
        add("--watch", type=float, default=0.0, help="seconds between looks for a newer version; default: 0, never")
        add("--drain_seconds", type=float, default=5.0, help="not ready before it stops; default: 5")
        add("--api_key_file", help="asks /v1 for this key; or set T5X_LITE_API_KEY")
        add("--admin_token_file", help="allows /admin/reload with this token; or set T5X_LITE_ADMIN_TOKEN")
        add("--admin_anywhere", action="store_true", help="other machines may reload too")
        add("--cors_origin", action="append", default=[], help="repeatable: a site whose pages may ask")

    args = doors.parse_flags(argv, __doc__, flags)
    host.keep_compiled_programs(on_accelerators=True)
    try:
        from t5x_lite.serving import server
        from t5x_lite.serving.settings import Settings, read_secret
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 't5x_lite[serve]'") from None

    settings = Settings(
        model_dir=args.model_dir,
        catalogue=args.catalogue,
        max_batch=args.max_batch,
        max_wait=args.max_wait_ms / 1000,
        max_queue=args.max_queue,
        max_k=args.max_k,
        watch=args.watch,
        api_key=read_secret("--api_key_file", args.api_key_file, "T5X_LITE_API_KEY"),
        admin_token=read_secret("--admin_token_file", args.admin_token_file, "T5X_LITE_ADMIN_TOKEN"),
        admin_anywhere=args.admin_anywhere,
        cors_origins=args.cors_origin,
    )
    server.run(settings, host=args.host, port=args.port, drain=args.drain_seconds)


if __name__ == "__main__":
    doors.run_door(main)
