"""A trained run folder, ready to answer: text in, text out. No TensorFlow, no gin, no tasks."""

import dataclasses
import logging
from collections.abc import Sequence

from etils import epath

from t5x_lite import interop, partitioning
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data.vocabularies import LOST_SHARE_WARNED, Vocabulary
from t5x_lite.decoding.greedy import Generator
from t5x_lite.run_folder import MANIFEST, read_manifest

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model wrote for one prompt; `score` is the sum of its tokens' log-probabilities."""

    text: str
    score: float
    ended: bool


@dataclasses.dataclass
class Engine:
    """Weights, vocabulary and lengths of one run, and the compiled decoder over them."""

    vocabulary: Vocabulary
    generator: Generator
    lengths: dict[str, int]

    @classmethod
    def load(cls, model_dir: str, step: int | None = None) -> "Engine":
        """Opens a run folder at `step`, else at its best step by the run's metric, else its latest.

        Or any other model that `open_source` knows, such as google/flan-t5-small. Raises UserError where it is none.
        """
        partitioner = partitioning.make_partitioner()
        if (epath.Path(model_dir) / MANIFEST).exists():
            checkpoints = Checkpoints(model_dir, best_metric=read_manifest(model_dir).get("best_metric"))
            step = checkpoints.existing_step(checkpoints.preferred_step() if step is None else step)
            source = interop.open_step(model_dir, step)
        else:
            source = interop.open_source(model_dir, "--model_dir")
        vocabulary = source.vocabulary()
        params = interop.load_model(source, source.config, partitioner)
        generator = Generator(source.config, params, eos_id=vocabulary.eos_id, partitioner=partitioner)
        return cls(vocabulary, generator, source.lengths)

    def generate(self, prompts: Sequence[str], max_tokens: int | None = None) -> list[Answer]:
        """Answers each prompt greedily; answers come in the order of the prompts."""
        self.warn_of_lost_characters(prompts)
        limit = self.lengths["inputs"]
        encoded = [self.vocabulary.encode(prompt) for prompt in prompts]
        for prompt, tokens in zip(prompts, encoded, strict=True):
            if len(tokens) >= limit:
                log.warning("prompt cut to the run's %d tokens (had %d): %.40s...", limit, len(tokens) + 1, prompt)
        inputs = [[*tokens[: limit - 1], self.vocabulary.eos_id] for tokens in encoded]
        generations = self.generator.generate(inputs, max_tokens or self.lengths["targets"])
        return [Answer(self.vocabulary.decode(g.tokens), g.score, g.ended) for g in generations]

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
