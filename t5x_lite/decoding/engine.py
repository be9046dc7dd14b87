"""A trained run folder, ready to answer: text in, text out. No TensorFlow, no gin, no tasks."""

import dataclasses
import logging
from collections.abc import Generator as Pieces
from collections.abc import Sequence

from etils import epath

from t5x_lite import interop, partitioning
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data.vocabularies import LOST_SHARE_WARNED, Vocabulary
from t5x_lite.decoding.generator import Generation, Generator, Stream
from t5x_lite.decoding.languages import name_of
from t5x_lite.decoding.options import Decoding
from t5x_lite.errors import UserError, nearest
from t5x_lite.run_folder import MANIFEST, read_manifest

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model wrote for one prompt.

    `score` is the sum of the log-probabilities of its tokens, its end included (after a beam search: over the length
    penalty), and `ended` says whether it came to an end by itself. `others` are the further ones of `n_best`.
    """

    text: str
    score: float
    ended: bool
    others: tuple["Answer", ...] = ()


@dataclasses.dataclass(frozen=True)
class AnswerStream:
    """An answer as far as it is written: `text` only grows, and `answer` comes when it is whole."""

    text: str
    answer: Answer | None
    stream: Stream


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a given target is: the log-probability of each of its tokens, its end included, and their sum."""

    total: float
    tokens: tuple[float, ...]


@dataclasses.dataclass
class Engine:
    """Weights, vocabulary and lengths of one run, and the compiled decoder over them."""

    vocabulary: Vocabulary
    generator: Generator
    lengths: dict[str, int]
    model_dir: str = ""

    @classmethod
    def load(cls, model_dir: str, step: int | None = None) -> "Engine":
        """Opens a run folder at `step`, else at its best step by the run's metric, else its latest.

        Or any other model that `open_source` knows, such as google/flan-t5-small. Raises UserError where it is none.
        """
        partitioner = partitioning.local_partitioner()
        step = chosen_step(model_dir, step)
        source = interop.open_source(model_dir, "--model_dir") if step is None else interop.open_step(model_dir, step)
        vocabulary = source.vocabulary()
        params = interop.load_model(source, source.config, partitioner)
        generator = Generator(source.config, params, eos_id=vocabulary.eos_id, partitioner=partitioner)
        return cls(vocabulary, generator, source.lengths, str(model_dir))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        seed: int = 0,
        first_number: int = 0,
        **options,
    ) -> list[Answer]:
        """An answer to each prompt, in their order: greedy, or as the fields of `Decoding` given in `options` say.

        An answer goes on from its prefix, which is no part of its text. Samples depend on `seed` and a prompt's number
        (from `first_number` on), not on the other prompts.
        """
        decoding = self.decoding(**options)
        if prefixes is not None:
            _check_one_each("prefixes", prefixes, prompts)
        prefix_tokens = None if prefixes is None else [self.vocabulary.encode(prefix) for prefix in prefixes]
        found = self.generator.generate(
            self.encode(prompts), decoding, prefixes=prefix_tokens, seed=seed, first_number=first_number
        )
        answers = ([self._answer(generation) for generation in generations] for generations in found)
        return [dataclasses.replace(best, others=tuple(others)) for best, *others in answers]

    def stream(self, prompt: str, *, steps: int = 4, **options) -> Pieces[str, None, Answer]:
        """The greedy answer in pieces of text, one for up to `steps` tokens; returns the whole of it.

        The pieces together are the text of `generate`, and none ends inside a character.
        """
        state = self.begin_stream(prompt, **options)
        while state.answer is None:
            written = len(state.text)
            state = self.extend_stream(state, steps)
            if piece := state.text[written:]:
                yield piece
        return state.answer

    def begin_stream(self, prompt: str, **options) -> AnswerStream:
        """A greedy answer before its first token; `stream` step by step, for callers that do other work between."""
        return self._answered(self.generator.begin(self.encode([prompt])[0], self.decoding(**options)))

    def extend_stream(self, state: AnswerStream, steps: int) -> AnswerStream:
        """The answer with up to `steps` more tokens, by the engine that began it; a state is extended once."""
        return self._answered(self.generator.extend(state.stream, steps))

    def _answered(self, stream: Stream) -> AnswerStream:
        answer = self._answer(stream.generation)
        if stream.finished:
            return AnswerStream(answer.text, answer, stream)
        # Of a character in several tokens the first ones read as U+FFFD, or as nothing, until it is whole; and whether
        # a blank at the end stays may depend on what comes after it.
        return AnswerStream(answer.text.rstrip("\ufffd").rstrip(), None, stream)

    def decoding(self, **options) -> Decoding:
        """`Decoding` of these fields, as long as the run's targets unless told otherwise.

        Raises UserError as there, and for a field that it has not.
        """
        names = [field.name for field in dataclasses.fields(Decoding)]
        for name in options:
            if name not in names:
                raise UserError(f"no option {name!r} of decoding{nearest(name, names)}; there are {', '.join(names)}")
        return Decoding(**({"max_tokens": self.lengths["targets"]} | options))

    def score(self, prompts: Sequence[str], targets: Sequence[str], *, width: int = 0) -> list[Score]:
        """How likely the model finds each target as the answer to the prompt of the same place.

        `width` is that of `Generator.score`.
        """
        _check_one_each("targets", targets, prompts)
        wanted = [[*self.vocabulary.encode(target), self.vocabulary.eos_id] for target in targets]
        found = self.generator.score(self.encode(prompts), wanted, width=width)
        return [Score(sum(scores), tuple(scores)) for scores in found]

    def answer(self, question: str, **options) -> str:
        """The text of `generate` for one prompt."""
        return self.generate([question], **options)[0].text

    def translate(self, text: str, target_language: str, **options) -> str:
        """The text in another language, which is named by its code, 'de', or in English, 'German'.

        Asks "Translate to German: ...", which runs of tasks/translation.py and Flan-T5 understand. Raises UserError for
        a language that there is not.
        """
        return self.answer(f"Translate to {name_of(target_language)}: {text}", **options)

    def recommender(self):
        """What recommends items with this engine; UserError for a run that was not trained to."""
        from t5x_lite.recommendation.knowledge import Knowledge  # the room above this one
        from t5x_lite.recommendation.recommender import Recommender

        return Recommender(self, Knowledge.load_run(self.model_dir))

    def warm_up(self, *, longest_prompt: int, most_prompts: int = 1, **options) -> float:
        """Compiles ahead for prompts of up to so many tokens, so many at a time; returns seconds.

        A request within these that has no prefixes compiles nothing: `generator.compile_count` stays.
        """
        rows = min(most_prompts, self.generator.max_batch)
        return self.generator.warm_up(self.decoding(**options), lengths=[longest_prompt], rows=[rows])

    def warm_up_streams(self, *, longest_prompt: int, **options) -> float:
        """As `warm_up`, of streams."""
        return self.generator.warm_up_streams(self.decoding(**options), lengths=[longest_prompt])

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens with EOS, cut to the run's input length."""
        if isinstance(prompts, str):
            raise UserError(f"prompts is one text, {prompts!r:.40}; give a list of them")
        self.warn_of_lost_characters(prompts)
        limit = self.lengths["inputs"]
        encoded = [self.vocabulary.encode(prompt) for prompt in prompts]
        longer = [prompt for prompt, tokens in zip(prompts, encoded, strict=True) if len(tokens) >= limit]
        if longer:
            counts = (len(longer), len(prompts), limit)
            log.warning("%d of %d prompts cut to the run's %d tokens; the first: %.40s...", *counts, longer[0])
        return [[*tokens[: limit - 1], self.vocabulary.eos_id] for tokens in encoded]

    def _answer(self, generation: Generation) -> Answer:
        return Answer(self.vocabulary.decode(generation.tokens), generation.score, generation.ended)

    def warn_of_lost_characters(self, prompts: Sequence[str]) -> None:
        """A vocabulary that cannot express the prompt makes the answer garbage: say so."""
        coverage = self.vocabulary.coverage(prompts)
        if coverage.share > LOST_SHARE_WARNED:
            log.warning(
                "%.0f%% of the prompt's characters are not in this model's vocabulary and reach it as <unk> (%s): "
                "the answer cannot depend on them; use a model that has them: mT5 (google/mt5-small) for most scripts, "
                "ByT5 (google/byt5-small) for all",
                100 * coverage.share,
                " ".join(coverage.examples[:10]),
            )


def _check_one_each(name: str, values: Sequence[str], prompts: Sequence[str]) -> None:
    if len(values) != len(prompts):
        raise UserError(f"{len(values)} {name} for {len(prompts)} prompts; give one for each")


def chosen_step(model_dir: str, step: int | None = None) -> int | None:
    """The step of a run folder that `Engine.load` opens where `step` is asked for; None where it is no run folder."""
    if not (epath.Path(model_dir) / MANIFEST).exists():
        return None
    checkpoints = Checkpoints(model_dir, best_metric=read_manifest(model_dir).get("best_metric"))
    return checkpoints.existing_step(checkpoints.preferred_step() if step is None else step)
