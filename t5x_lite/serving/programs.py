"""What the device thread runs: batches of one kind, for one version. An error is the result of its own payload."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5x_lite.data.vocabularies import LOST_SHARE_WARNED
from t5x_lite.decoding.engine import Answer, AnswerStream, Score
from t5x_lite.errors import FieldError, UserError
from t5x_lite.recommendation.recommender import Recommendations, width_of
from t5x_lite.serving import settings
from t5x_lite.serving.served import Served


class Timed(NamedTuple):
    """A result, and the seconds of its batch on the host and on the device."""

    value: Any
    encode: float
    decode: float


@dataclasses.dataclass(frozen=True)
class Program:
    """Computes payloads of one version; equal programs share batches."""

    served: Served

    def __call__(self, payloads: Sequence[Any]) -> list[Timed | Exception]:
        generator = self.served.engine.generator
        began, on_device = time.perf_counter(), generator.device_seconds
        results = self.results(payloads)
        decode = generator.device_seconds - on_device
        encode = max(time.perf_counter() - began - decode, 0.0)
        return [each if isinstance(each, Exception) else Timed(each, encode, decode) for each in results]

    def results(self, payloads: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Recommend(Program):
    """Payloads are arguments of `Recommender.request`; reasons run apart, since they take many times as long."""

    width: int
    evidence: bool

    @classmethod
    def of(cls, served: Served, k: int, evidence: bool) -> "Recommend":
        return cls(served, width_of(k), evidence)

    def results(self, payloads: Sequence[Mapping[str, Any]]) -> list[Recommendations | UserError]:
        return self.served.recommender.recommend_each(payloads)


@dataclasses.dataclass(frozen=True)
class Generate(Program):
    """Payloads are prompts; results are answers, and what of the prompt the model does not see."""

    mode: str

    def results(self, payloads: Sequence[str]) -> list[tuple[Answer, list[str]]]:
        options = dataclasses.asdict(self.served.decodings[self.mode])
        answers = self.served.engine.generate(payloads, **options)
        return [(answer, warnings_of(self.served, prompt)) for answer, prompt in zip(answers, payloads, strict=True)]


@dataclasses.dataclass(frozen=True)
class ScoreTargets(Program):
    """Payloads are a prompt and its targets."""

    def results(self, payloads: Sequence[tuple[str, Sequence[str]]]) -> list[list[Score] | FieldError]:
        errors = [self._too_long(targets) for _, targets in payloads]
        good = [payload for payload, error in zip(payloads, errors, strict=True) if error is None]
        prompts = [prompt for prompt, targets in good for _ in targets]
        width = self.served.engine.lengths["targets"]
        scores = iter(self.served.engine.score(prompts, [each for _, targets in good for each in targets], width=width))
        return [error or [next(scores) for _ in targets] for (_, targets), error in zip(payloads, errors, strict=True)]

    def _too_long(self, targets: Sequence[str]) -> FieldError | None:
        """A longer target than the model writes would need a program of its own."""
        longest = self.served.engine.lengths["targets"]
        for number, target in enumerate(targets):
            length = len(self.served.engine.vocabulary.encode(target)) + 1
            if length > longest:
                return FieldError(f"targets[{number}]", f"has {length} tokens; the model writes {longest} at most")
        return None


@dataclasses.dataclass(frozen=True)
class BeginStream(Program):
    """Payloads are prompts; results are states for `ExtendStream`, and what of the prompt the model does not see."""

    def results(self, payloads: Sequence[str]) -> list[tuple[AnswerStream, list[str]]]:
        return [(self.served.engine.begin_stream(prompt), warnings_of(self.served, prompt)) for prompt in payloads]


@dataclasses.dataclass(frozen=True)
class ExtendStream(Program):
    """Payloads are states of streams; results are the states some tokens later."""

    def results(self, payloads: Sequence[AnswerStream]) -> list[AnswerStream]:
        return [self.served.engine.extend_stream(state, settings.STREAMED_TOKENS) for state in payloads]


def warnings_of(served: Served, prompt: str) -> list[str]:
    """What the model does not see of a prompt."""
    vocabulary, limit = served.engine.vocabulary, served.engine.lengths["inputs"]
    warnings = []
    length = len(vocabulary.encode(prompt)) + 1
    if length > limit:
        warnings.append(f"the prompt has {length} tokens; the model reads the first {limit}")
    lost = vocabulary.coverage([prompt])
    if lost.share > LOST_SHARE_WARNED:
        characters = " ".join(lost.examples[:10])
        warnings.append(f"{lost.share:.0%} of the characters are not in the model's vocabulary: {characters}")
    return warnings
