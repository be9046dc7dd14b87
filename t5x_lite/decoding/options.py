"""What a user asks of decoding: one frozen value, and so one compiled program for each."""

import dataclasses
import math
import numbers

from t5x_lite.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy by default; a search with `beams`; samples with a `temperature`.

    `n_best` sequences come back for each request, best first: of the beams, or so many samples. Of samples,
    `temperature` divides the logits first; then only tokens are kept that are among the `top_k` likeliest, in the
    smallest set that holds `top_p` of the probability (Holtzman et al. 2020, arXiv:1904.09751), and at least `min_p`
    times as likely as the likeliest (arXiv:2407.01082). A beam's score is divided by ((5 + length) / 6) **
    `length_alpha` (Wu et al. 2016, arXiv:1609.08144).

    `repetition_penalty` divides the log-odds of tokens that are there already (multiplies negative ones; Keskar et
    al. 2019, arXiv:1909.05858), and no `no_repeat_ngram` tokens in a row come twice; 0 allows them.

    Raises UserError, in one line, for what cannot be.
    """

    max_tokens: int
    beams: int = 1
    n_best: int = 1
    length_alpha: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self):
        for name, least in (("max_tokens", 1), ("beams", 1), ("n_best", 1), ("top_k", 0), ("no_repeat_ngram", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise UserError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        for name in ("length_alpha", "temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise UserError(f"{name} is {value!r}; it must be a number")
        for name in ("length_alpha", "temperature"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}; it must lie in [0, 1]")
        if self.repetition_penalty <= 0:
            raise UserError(f"repetition_penalty is {self.repetition_penalty}; it must be positive, and 1 is none")
        if self.temperature and self.beams > 1:
            raise UserError(f"beams is {self.beams} with temperature {self.temperature}: search or sample, not both")
        if not self.temperature:
            for name, neutral in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if getattr(self, name) != neutral:
                    raise UserError(f"{name} is set and temperature is 0: only samples use it; set temperature too")
            if self.n_best > self.beams:
                raise UserError(
                    f"n_best is {self.n_best} with {self.beams} beam(s): set beams to at least as many, or a "
                    "temperature for so many samples"
                )
