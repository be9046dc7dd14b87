"""What a person sees while a run trains: a live line on a terminal, plain lines when piped."""

import math
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from t5x_lite.training.work import NO_WORK, Work

SPEEDS = ("tokens_per_second", "steps_per_second", "mfu", "mfu_real")
_SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Counts the work and the seconds of training steps; evaluation and saving do not count.

    A process counts its `own_share` of each batch and takes the rest to be as full. With `peak_flops`, what all devices
    can do a second, speed is also told as MFU.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        *,
        own_share: float = 1.0,
        peak_flops: float | None = None,
        quiet: bool = False,
    ):
        self._total = total_steps
        self._start = self._step = start_step
        self._own_share = own_share
        self._peak_flops = peak_flops
        self._work = NO_WORK
        self._seconds = 0.0
        self._resumed: float | None = time.monotonic()  # None while paused
        self._mark = (NO_WORK, 0.0, start_step)  # work, seconds and step at the last `rates`
        self._printed = -math.inf
        self._quiet = quiet
        self._live: Progress | None = None
        if sys.stdout.isatty() and not quiet:
            self._live = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(),
            )
            self._live.start()
            self._bar = self._live.add_task("train", total=total_steps, completed=start_step, text="compiling")

    def step(self, step: int, work: Work) -> None:
        """Counts one step and the work of this process's share of it."""
        self._step = step
        self._work = self._work.plus(work, 1 / self._own_share)
        if self._live:
            self._live.update(self._bar, completed=step)

    def rates(self) -> dict[str, float]:
        """Steps and real tokens a second since the last call, and the seconds of training in this process.

        With a peak also `mfu`, the share of it that went to all positions, padding included, as others count it, and
        `mfu_real`, the share that the real tokens needed.
        """
        seconds = self.seconds()
        before, then, step = self._mark
        self._mark = self._work, seconds, self._step
        elapsed = max(seconds - then, 1e-9)
        done = self._work.plus(before, -1)
        rates = {
            "tokens_per_second": done.tokens / elapsed,
            "steps_per_second": (self._step - step) / elapsed,
            "training_seconds": seconds,
        }
        if self._peak_flops:
            possible = elapsed * self._peak_flops
            rates |= {"mfu": done.flops / possible, "mfu_real": done.real_flops / possible}
            rates["peak_flops"] = self._peak_flops
        return rates

    def show(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """One line: at most every ten seconds when piped."""
        left = (self._total - step) * self.seconds() / max(self._step - self._start, 1)
        used = f"  MFU {rates['mfu']:.1%} (real tokens {rates['mfu_real']:.1%})" if "mfu" in rates else ""
        text = f"loss {loss:.4f}  {rates['tokens_per_second']:,.0f} tokens/s{used}  {duration(left)} left"
        if self._live:
            self._live.update(self._bar, text=text)
        elif not self._quiet and (time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES or step == self._total):
            self._printed = time.monotonic()
            print(f"step {step}/{self._total}  {text}", flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif not self._quiet:
            print(text, flush=True)

    def seconds(self) -> float:
        """Seconds of training since the start of this process's run."""
        return self._seconds + (0.0 if self._resumed is None else time.monotonic() - self._resumed)

    def restart(self) -> None:
        """Forgets the time so far: compilation is no training."""
        self._seconds, self._resumed, self._start = 0.0, time.monotonic(), self._step
        self._mark = self._work, 0.0, self._step

    def pause(self) -> None:
        self._seconds, self._resumed = self.seconds(), None

    def resume(self) -> None:
        self._resumed = time.monotonic()

    def close(self) -> None:
        if self._live:
            self._live.stop()


def duration(seconds: float) -> str:
    """65 -> '1:05', 3665 -> '1:01:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
