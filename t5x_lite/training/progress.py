"""What a person sees while a run trains: a live line on a terminal, plain lines when piped."""

import sys
import time
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Counts real tokens and seconds of training steps; evaluation and saving do not count."""

    def __init__(self, total_steps: int, start_step: int, *, quiet: bool = False):
        self._total = total_steps
        self._start = self._step = start_step
        self._tokens = 0
        self._seconds = 0.0
        self._resumed = time.monotonic()
        self._mark = (0, 0.0, start_step)  # tokens, seconds and step at the last `rates`
        self._printed = 0.0
        self._quiet = quiet
        self._live: Progress | None = None
        if sys.stdout.isatty() and not quiet:
            self._live = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(),
            )
            self._live.start()
            self._bar = self._live.add_task("train", total=total_steps, completed=start_step, text="")

    def step(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Counts one step and the tokens of its batch that are not padding."""
        self._step = step
        self._tokens += int(np.count_nonzero(batch["encoder_input_tokens"]))
        self._tokens += int(np.count_nonzero(batch["decoder_loss_weights"]))
        if self._live:
            self._live.update(self._bar, completed=step)

    def rates(self) -> dict[str, float]:
        """Steps and real tokens a second since the last call."""
        seconds = self.seconds()
        tokens, before, step = self._mark
        self._mark = self._tokens, seconds, self._step
        elapsed = max(seconds - before, 1e-9)
        return {
            "tokens_per_second": (self._tokens - tokens) / elapsed,
            "steps_per_second": (self._step - step) / elapsed,
            "training_seconds": seconds,
        }

    def show(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """One line: at most every ten seconds when piped."""
        left = (self._total - step) * self.seconds() / max(self._step - self._start, 1)
        text = f"loss {loss:.4f}  {rates['tokens_per_second']:,.0f} tokens/s"
        if self._live:
            self._live.update(self._bar, text=text)
        elif not self._quiet and (time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES or step == self._total):
            self._printed = time.monotonic()
            print(f"step {step}/{self._total}  {text}  {_duration(left)} left", flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        elif not self._quiet:
            print(text, flush=True)

    def seconds(self) -> float:
        """Seconds of training since the start of this process's run."""
        return self._seconds + (time.monotonic() - self._resumed if self._resumed else 0.0)

    def restart(self) -> None:
        """Forgets the time so far: compilation is no training."""
        self._seconds, self._resumed, self._start = 0.0, time.monotonic(), self._step
        self._mark = self._tokens, 0.0, self._step

    def pause(self) -> None:
        self._seconds, self._resumed = self.seconds(), 0.0

    def resume(self) -> None:
        self._resumed = time.monotonic()

    def close(self) -> None:
        if self._live:
            self._live.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
