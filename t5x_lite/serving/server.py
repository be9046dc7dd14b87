"""The process: logs, and an end that lets requests finish."""

import logging
import signal
import sys
import threading

import uvicorn

from t5x_lite.errors import UserError
from t5x_lite.serving.app import create_app
from t5x_lite.serving.protocol import BoundedHeaders
from t5x_lite.serving.settings import Settings

log = logging.getLogger(__name__)

_SWITCH_SECONDS = 0.0005  # the event loop waits no longer for the device thread's Python


def run(settings: Settings, *, host: str, port: int, drain: float) -> None:
    """Serves until a signal, then `drain` seconds more, in which balancers notice, and until requests have ended.

    UserError where the run folder cannot be served, or the port is taken.
    """
    _set_up_logs()
    sys.setswitchinterval(_SWITCH_SECONDS)
    server: _Server | None = None
    refusals: list[UserError] = []

    def refused(error: UserError) -> None:
        refusals.append(error)
        server.should_exit = True

    app = create_app(settings, refused=refused)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=BoundedHeaders,
        log_config=None,
        access_log=False,  # guard.py writes one
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )
    server = _Server(config, app.state.versions, drain)
    log.info("loading and compiling %s (faster the next time), then at http://%s:%d/", settings.model_dir, host, port)
    try:
        server.run()
    except SystemExit:
        raise UserError(f"{host}:{port} cannot be listened on; is it taken? give another --port") from None
    if refusals:
        raise refusals[0]


class _Server(uvicorn.Server):
    """Stops in two steps: not ready first, deaf later."""

    def __init__(self, config: uvicorn.Config, versions, drain: float):
        super().__init__(config)
        self._versions = versions
        self._drain = drain

    def handle_exit(self, sig: int, frame) -> None:
        if self._versions.current is None:  # nobody is being answered, and compiling would go on: end as by default
            signal.signal(sig, signal.SIG_DFL)
            return signal.raise_signal(sig)
        if self._versions.draining or not self._drain:  # twice means now
            return super().handle_exit(sig, frame)
        log.info("not ready any more; stopping in %g s, and at once at a second signal", self._drain)
        self._versions.draining = True
        timer = threading.Timer(self._drain, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def _set_up_logs() -> None:
    """Requests to standard output, what the server itself does to standard error; libraries only warn."""
    for name, stream, form in (
        ("t5x_lite.access", sys.stdout, "%(message)s"),
        ("t5x_lite", sys.stderr, "%(asctime)s %(message)s"),
    ):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(form))
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("t5x_lite.decoding").setLevel(logging.ERROR)  # its warnings are in the answers
