"""WMT's news translation through TensorFlow Datasets: eight tasks and the mixture `wmt`.

Importing this module only registers the tasks; a set is downloaded (gigabytes) when its rows are first read. The
wordings are those of translation.py, so these tasks mix with its.
"""

import functools

from t5x_lite.data.metrics import bleu, chrf
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Tfds
from tasks.translation import nfc
from tasks.translation_wordings import wordings

SETS = {
    "de": "wmt14_translate/de-en",
    "fr": "wmt14_translate/fr-en",
    "ru": "wmt19_translate/ru-en",
    "zh": "wmt19_translate/zh-en",
}
DIRECTIONS = [pair for language in SETS for pair in (("en", language), (language, "en"))]


def row(source: str, target: str, example: dict[str, bytes]) -> dict[str, str]:
    return {"text": nfc(example[source].decode()), "translation": nfc(example[target].decode())}


for _source, _target in DIRECTIONS:
    register_task(
        f"wmt_{_source}_{_target}",
        Tfds(
            SETS[_source if _target == "en" else _target],
            splits={"train": "train", "validation": "validation"},
            fields=functools.partial(row, _source, _target),
        ),
        wordings(_source, _target),
        metrics=[chrf, bleu(_target)],
        renderings_per_row=1,
    )

register_mixture("wmt", [f"wmt_{source}_{target}" for source, target in DIRECTIONS], rates="equal")
