"""Batch inference: prompts of a command line, of standard input, or of a file of any length."""

import dataclasses
import datetime
import hashlib
import io
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from t5x_lite import partitioning, processes
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.decoding import records
from t5x_lite.decoding.engine import Answer, Engine, chosen_step
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.records import Record
from t5x_lite.errors import UserError
from t5x_lite.run_folder import MANIFEST, check_folder_of

CHUNK = 2048  # records; a chunk is what a killed job loses at most, and what its batches are cut from

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
_WORDING = InstructionTemplate("few_shot", "{prompt}", "{answer}")  # as training puts exemplars before a question


def infer(
    model_dir: str,
    *,
    step: int | None = None,
    mode: str = "generate",
    prompts: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    input: str | None = None,
    output: str | None = None,
    few_shot: str | None = None,
    scores: bool = False,
    seed: int = 0,
    **options: Any,
) -> None:
    """All of `python -m t5x_lite.infer`; options of None are not given.

    Raises UserError for every mistake, those in files included, before the model is loaded or anything is written.
    """
    options = {name: value for name, value in options.items() if value is not None}
    exemplars = tuple(records.read(few_shot, ["prompt", "answer"])) if few_shot else ()
    request = Request(mode, options, seed, exemplars)
    asked: Iterable[Record] = ()
    job: FileJob | None = None
    if input is None and output is None:
        asked = _given(mode, prompts, targets)
    elif input is None or output is None:
        given, missing = ("input", "output") if output is None else ("output", "input")
        raise UserError(f"--{given} needs --{missing}: both name files")
    elif prompts or targets:
        raise UserError("--input and --prompt: give a file or prompts, not both")
    else:
        job = FileJob.check(input, output, request)

    partitioning.initialize_distributed()  # before a checkpoint is looked at, which asks for devices
    step = chosen_step(model_dir, step)
    engine = Engine.load(model_dir, step)
    request.check_exemplars(engine)
    if job:
        job.run(engine, {"model": identity(model_dir), "step": step})
    elif jax.process_index() == 0:
        # Who types sees each answer at once.
        for line in answer_lines(engine, request, asked, scores=scores, chunk=1 if sys.stdin.isatty() else CHUNK):
            print(line, flush=True)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of each record: an answer, as `options`, fields of Decoding, say; or its target's score."""

    mode: str = "generate"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    exemplars: tuple[Record, ...] = ()

    def __post_init__(self):
        if self.mode == "score" and self.options:
            raise UserError(f"--{next(iter(self.options))} is for answers; --mode=score only reads what is given")
        Decoding(**{"max_tokens": 1, **self.options})  # what cannot be is said before a model is loaded

    @property
    def needed(self) -> tuple[str, ...]:
        return ("prompt", "target") if self.mode == "score" else ("prompt",)

    @property
    def reserved(self) -> tuple[str, ...]:
        """The fields that `results` gives."""
        if self.mode == "score":
            return ("score", "token_scores")
        return ("answer", "score", "ended", *(("n_best",) if self.options.get("n_best", 1) > 1 else ()))

    def described(self, engine: Engine) -> dict[str, Any]:
        """All of it that the answers depend on."""
        decoding = {} if self.mode == "score" else dataclasses.asdict(engine.decoding(**self.options))
        exemplars = hashlib.sha256(json.dumps(self.exemplars).encode()).hexdigest()
        return {"mode": self.mode, "seed": self.seed, "few_shot_sha256": exemplars, **decoding}

    def check_exemplars(self, engine: Engine) -> None:
        """Raises UserError where the worked examples leave the model no room for a question."""
        shown = _WORDING.render_few_shot({"prompt": "", "answer": ""}, self.exemplars)[0]
        used, limit = len(engine.vocabulary.encode(shown)), engine.lengths["inputs"]
        if used >= limit:
            raise UserError(
                f"--few_shot: its {len(self.exemplars)} examples take {used} tokens, and this model reads {limit} in "
                "all; give fewer or shorter ones"
            )

    def results(self, engine: Engine, asked: Sequence[Record], first_number: int) -> list[Record]:
        """For each record what the output adds to it. Samples depend on the seed and a record's number alone."""
        prompts = [_WORDING.render_few_shot({**record, "answer": ""}, self.exemplars)[0] for record in asked]
        if self.mode == "score":
            found = engine.score(prompts, [record["target"] for record in asked])
            return [{"score": score.total, "token_scores": list(score.tokens)} for score in found]
        answers = engine.generate(prompts, seed=self.seed, first_number=first_number, **self.options)
        if "n_best" not in self.reserved:
            return [_fields(answer) for answer in answers]
        return [_fields(answer) | {"n_best": [_fields(one) for one in (answer, *answer.others)]} for answer in answers]


def _fields(answer: Answer) -> Record:
    return {"answer": answer.text, "score": answer.score, "ended": answer.ended}


# ---------------------------------------------------------------------- prompts in, lines out


def _given(mode: str, prompts: Sequence[str] | None, targets: Sequence[str] | None) -> Iterable[Record]:
    """Records of the flags; without any, the lines of standard input as they come."""
    if mode != "score":
        if targets:
            raise UserError("--target is what --mode=score scores; set that, or leave the target out")
        if prompts:
            return [{"prompt": prompt} for prompt in prompts]
        return (record for _, record in records.lines(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig")))
    prompts, targets = prompts or [], targets or []
    if len(prompts) == 1:  # several answers to one question
        prompts = [*prompts] * max(1, len(targets))
    if not prompts or len(prompts) != len(targets):
        raise UserError(
            f"--mode=score needs a --target for each --prompt, or one prompt and any number of targets, or --input; "
            f"given: {len(prompts)} and {len(targets)}"
        )
    return [{"prompt": prompt, "target": target} for prompt, target in zip(prompts, targets, strict=True)]


def answer_lines(
    engine: Engine, request: Request, asked: Iterable[Record], *, scores: bool = False, chunk: int = CHUNK
) -> Iterator[str]:
    """What a person reads: an answer a line, or, of several, numbered lines under each prompt."""
    asked = iter(asked)
    first = 0
    while some := list(itertools.islice(asked, chunk)):
        for record, result in zip(some, request.results(engine, some, first), strict=True):
            if request.mode == "score":
                yield _line({**result, "answer": record["target"]}, scores=True)
            elif "n_best" in result:
                yield record["prompt"]
                yield from (f"{n:3}. {_line(one, scores=scores)}" for n, one in enumerate(result["n_best"], 1))
            else:
                yield _line(result, scores=scores)
        first += len(some)


def _line(result: Record, *, scores: bool) -> str:
    text = " ".join(result["answer"].splitlines())  # an answer is one line, whatever the model wrote
    return f"{result['score']:.4f}\t{text}" if scores else text


# ---------------------------------------------------------------------- a file in, a file out


class Asks(Protocol):
    """What a job needs of a request: `needed` fields of a record, those that it adds, and what they are."""

    @property
    def needed(self) -> Sequence[str]: ...

    @property
    def reserved(self) -> Sequence[str]: ...

    def described(self, engine: Any) -> dict[str, Any]: ...

    def results(self, engine: Any, asked: Sequence[Record], first_number: int) -> list[Record]: ...


@dataclasses.dataclass(frozen=True)
class FileJob:
    """Every record of `input` with its answer in `output`, which is whole or not there.

    Chunk N is written whole as OUTPUT.parts/N.jsonl; what is there when a job starts is not computed again. Several
    processes (of a pod, under srun, ...) that see the same files take turns at the chunks; each of them answers on its
    own devices, and the first joins the parts. Another number of processes may go on with the job.
    """

    input: Path
    output: Path
    request: "Asks"
    total: int
    chunk: int = CHUNK

    @classmethod
    def check(cls, input: str, output: str, request: "Asks", *, chunk: int = CHUNK) -> "FileJob":
        """Reads all of `input` once, so that a mistake in its last line does not end hours of work."""
        path = Path(output)
        if path.suffix != ".jsonl":
            raise UserError(f"--output: {output!r} must end in .jsonl")
        check_folder_of("--output", output)
        if path.exists():
            raise UserError(f"--output: {output!r} is there already; move it away, or name another file")
        total = sum(1 for _ in records.read(input, request.needed, request.reserved))
        return cls(Path(input), path, request, total, chunk)

    @processes.together("start all of them again with the same command: what is answered is not asked again")
    def run(self, engine: Any, model: Mapping[str, Any]) -> None:
        """The engine is what the request asks. `model` says which weights it has: a job goes on with the same only."""
        self._claim(self.fingerprint(engine, model))
        process, count = jax.process_index(), jax.process_count()
        source = records.read(self.input, self.request.needed, self.request.reserved)
        with _Progress(self.total, self._finished(), quiet=process > 0) as progress:
            for number, part in enumerate(self.parts):
                asked = list(itertools.islice(source, self.chunk))
                if number % count != process or part.exists():
                    continue
                found = self.request.results(engine, asked, first_number=number * self.chunk)
                records.write_whole(part, (record | result for record, result in zip(asked, found, strict=True)))
                progress.show(self._finished())
            # Files say when the others are done: a barrier of the devices gives up after minutes, and one process may
            # have hours more to do. One that dies ends the others too, through JAX.
            if process == 0:
                while (finished := self._finished()) < self.total:
                    progress.show(finished)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                records.join(self.parts, self.output)
                self._clear()
            else:
                while not self.output.exists():
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
        progress.say(f"{self.total:,} records in {self.output}, in {duration(progress.seconds())}")

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def parts(self) -> list[Path]:
        return [self.folder / f"{number:06}.jsonl" for number in range(-(-self.total // self.chunk))]

    def fingerprint(self, engine: Any, model: Mapping[str, Any]) -> dict[str, Any]:
        """All that the output depends on."""
        with open(self.input, "rb") as file:
            read = hashlib.file_digest(file, "sha256").hexdigest()
        return {"input_sha256": read, "chunk": self.chunk, **model, **self.request.described(engine)}

    def _claim(self, fingerprint: Mapping[str, Any]) -> None:
        """Makes the folder of parts this job's. UserError where it is another's, which stays as it is."""
        claim = self.folder / "job.json"
        if claim.exists():
            self._compare(json.loads(claim.read_text()), fingerprint)
        elif self.folder.is_dir() and any(path.suffix != ".tmp" for path in self.folder.iterdir()):
            raise UserError(f"--output: {str(self.folder)!r} is not a job's (no job.json); move it away")
        elif jax.process_index() == 0:
            try:
                self.folder.mkdir(exist_ok=True)
                records.write_whole(claim, [fingerprint])
            except OSError as error:
                raise UserError(f"--output: {str(self.folder)!r} cannot be written ({error})") from None
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the job's folder is there")
            if not claim.exists():
                raise UserError(f"--output: process 0 wrote {str(claim)!r}, not seen here; use a folder that all share")

    def _compare(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for name in ours | theirs:
            there, here = theirs.get(name), ours.get(name)
            if there != here:
                raise UserError(
                    f"--output: {str(self.folder)!r} is of another job: {name} is {there!s:.12} there and "
                    f"{here!s:.12} here; go on as it began, or delete that folder"
                )

    def _finished(self) -> int:
        """Records whose answers are on the disk, by whichever process."""
        return sum(
            min(self.chunk, self.total - number * self.chunk) for number, part in enumerate(self.parts) if part.exists()
        )

    def _clear(self) -> None:
        """Last goes what says whose the folder is: a kill in between leaves a job that can go on."""
        claim = self.folder / "job.json"
        for path in self.folder.iterdir():
            if path != claim:
                path.unlink()
        claim.unlink()
        self.folder.rmdir()


def identity(model_dir: str) -> str:
    """The sha256 of a run's manifest; of another model its name."""
    manifest = Path(model_dir) / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else str(model_dir)


class _Progress:
    """A bar on a terminal, else a line at most every ten seconds; on stderr, which no answer goes to."""

    def __init__(self, total: int, done: int, *, quiet: bool):
        self._total, self._first = total, done
        self._began = self._printed = time.monotonic()
        self._quiet = quiet
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        shown = sys.stderr.isatty() and not quiet
        self._bar = Progress(*columns, console=Console(stderr=True)) if shown else None

    def __enter__(self) -> "_Progress":
        if self._first:
            self.say(f"going on after {self._first:,} of {self._total:,} records")
        if self._bar:
            self._task = self._bar.add_task("compiling", total=self._total, completed=self._first)
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()  # or the terminal would be left without its cursor

    def show(self, done: int) -> None:
        rate = (done - self._first) / max(self.seconds(), 1e-9)
        text = f"{rate:,.0f}/s  {duration((self._total - done) / max(rate, 1e-9))} left"
        if self._bar:
            self._bar.update(self._task, completed=done, description=text)
        elif done < self._total and time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self.say(f"{done:,}/{self._total:,} records  {text}")

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._began


def duration(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(min(seconds, 1e9)))
