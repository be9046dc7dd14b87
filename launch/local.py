"""Runs a command as several processes of this machine, which find one another as the hosts of a TPU slice do.

python launch/local.py --processes=2 [--devices_per_process=4] -- python -m t5x_lite.train --gin_file=gin/qa.gin ...

Each process has CPU devices of its own; their output comes line by line, with the process' number in front.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from t5x_lite.doors import parse_flags, run_door
from t5x_lite.errors import UserError

_GRACE = 10.0  # seconds in which the others may end by themselves after the first failed; then, after SIGTERM


def main(argv: list[str]) -> None:
    at = argv.index("--") if "--" in argv else len(argv)

    def flags(parser):
        parser.add_argument("--processes", type=int, required=True)
        parser.add_argument("--devices_per_process", type=int, default=1)
        parser.add_argument("--dry_run", action="store_true", help="print what would be started, and start nothing")

    asked = parse_flags(argv[:at], __doc__, flags)
    command = argv[at + 1 :]
    if min(asked.processes, asked.devices_per_process) < 1 or not command:
        raise UserError("nothing to run; give --processes and --devices_per_process of 1 or more, and -- COMMAND")
    port = _free_port()
    added = [environment(number, asked.processes, asked.devices_per_process, port) for number in range(asked.processes)]
    if asked.dry_run:
        for variables in added:
            print(shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *command]))
        return
    sys.exit(run(command, added))


def environment(number: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """What a process is told: who it is, where the first one waits, and how many CPU devices it has."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(number),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
    }


def run(command: Sequence[str], added: Sequence[Mapping[str, str]], grace: float = _GRACE) -> int:
    """Runs the command once for each set of variables; the status of the first that failed, 0 where none did.

    Where one fails, the others are ended: they would wait for it. SIGINT and SIGTERM are passed on to all.
    Raises UserError for a command that there is not.
    """
    started: list[subprocess.Popen] = []
    shown: list[threading.Thread] = []

    def pass_on(signum: int, _) -> None:
        for process in started:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, variables in enumerate(added):
            # A session of its own: Ctrl-C reaches it once, from here.
            try:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **variables},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(
                    f"{command[0]!r} cannot be started ({error.strerror}); write a program after --, like python"
                ) from None
            started.append(process)
            shown.append(threading.Thread(target=_show, args=(number, process), daemon=True))
            shown[-1].start()
        return _wait(started, grace)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for thread in shown:
            thread.join(timeout=1)  # a grandchild may hold the pipe open
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait(started: Sequence[subprocess.Popen], grace: float) -> int:
    status, deadline, last_words = 0, float("inf"), iter((signal.SIGTERM, signal.SIGKILL))
    while True:
        running = [process for process in started if process.poll() is None]
        failed = next((process for process in started if process.returncode), None)
        if failed and not status:
            # As a shell says that a signal ended it.
            status = failed.returncode if failed.returncode > 0 else 128 - failed.returncode
            deadline = time.monotonic() + grace
        if not running:
            return status
        if time.monotonic() > deadline:
            signum = next(last_words, signal.SIGKILL)
            for process in running:
                process.send_signal(signum)
            deadline = time.monotonic() + grace
        time.sleep(0.05)


def _show(number: int, process: subprocess.Popen) -> None:
    for line in process.stdout:
        sys.stdout.write(f"[{number}] {line.decode(errors='replace')}")
        sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


if __name__ == "__main__":
    run_door(main)
