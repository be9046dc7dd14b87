"""Translation between English and twelve languages, without a download: 24 tasks and the mixture `translation`.

translate_en_de, translate_de_en ...: names, dates, times, numbers, amounts, measures, lists and entries of CLDR
(cldr.py). `train` has 80% of the values, `validation` and `test` 10% each, the same in all directions: a date of
`test` is in no train split, in no style, alone or in an entry. Names alone all occur in training.

Wordings are in translation_wordings.py. The languages are named in words: one model serves all directions.
"""

import functools
import unicodedata
from collections.abc import Iterator
from random import Random

from t5x_lite.data.metrics import bleu, chrf
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Rows
from tasks import cldr
from tasks.translation_wordings import PHRASES, wordings

VALUES = {"train": 3500, "validation": 80, "test": 80}  # of each pair of languages; a value is about two rows

Pair = tuple[str, str]  # English, the other language


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@functools.cache
def composed(language: str, part: str) -> tuple[Pair, ...]:
    """Values of a part, drawn anew for each language, in all their styles."""
    rng = Random(f"{language} {part}")
    pairs: list[Pair] = []
    for kind in rng.choices(cldr.KINDS, [kind.share for kind in cldr.KINDS], k=VALUES[part]):
        value = kind.draw(rng, part)
        english, other = (kind.write(value, cldr.locale(each)) for each in ("en", language))
        pairs += zip(map(nfc, english), map(nfc, other), strict=True)
    return tuple(pairs)


def pairs(language: str, part: str) -> Iterator[Pair]:
    """Names first; whoever wants only the first row, as registration does, waits for no other."""
    if part == "train":
        for name in (name for sort in cldr.SORTS for name in cldr.names(sort)):
            english, other = (nfc(cldr.name_in(name, cldr.locale(each)) or "") for each in ("en", language))
            yield english, other
    yield from composed(language, part)


def rows(source: str, target: str, part: str) -> Iterator[dict[str, str]]:
    """Each text with one translation: where styles read the same in the source, the first of them is meant.

    'März 2024' is English 'March 2024', never 'Mar 2024'.
    """
    language = source if target == "en" else target
    seen = set()
    for english, other in pairs(language, part):
        text, translation = (english, other) if source == "en" else (other, english)
        if text not in seen:
            seen.add(text)
            yield {"text": text, "translation": translation}


DIRECTIONS = [pair for language in PHRASES for pair in (("en", language), (language, "en"))]

for _source, _target in DIRECTIONS:
    register_task(
        f"translate_{_source}_{_target}",
        Rows({part: functools.partial(rows, _source, _target, part) for part in VALUES}),
        wordings(_source, _target),
        metrics=[chrf, bleu(_target)],
        renderings_per_row=1,
    )

register_mixture("translation", [f"translate_{source}_{target}" for source, target in DIRECTIONS], rates="equal")
