"""How far the model is from transformers' PyTorch T5, variant by variant, in float32: writes docs/parity.md.

python -m benchmarks.parity
"""

import platform
from importlib import metadata
from pathlib import Path

import transformers

from t5x_lite import config
from tests.model.reference import BEAMS, DECODED, VARIANTS, Difference, measure

_PAGE = Path(__file__).parents[1] / "docs" / "parity.md"

_TEXT = """# Equal to transformers

The same random float32 weights in transformers' PyTorch T5 and, by way of its files, in t5x_lite: the largest
difference over four requests of 3 to 150 tokens (targets of 1 to 40), padded in one batch, and packed in one row. First
absolute, then relative to the largest value of the reference; of the gradients, those of the parameter that differs
most. Ids: the share of equal sequences, greedy with an end of sequence, and all {beams} beams of a search of {decoded}
tokens.

{tables}

Written by `python -m benchmarks.parity` on {machine}, {versions}.
[tests/model/test_hugging_face.py](../tests/model/test_hugging_face.py) holds the same numbers to float32 rounding.

Three things of transformers 5 differ. It scales the input of umT5's head whenever it has read a config.json, since it
takes every head for a tied one; umT5's checkpoints have a head of their own, and the comparison above switches it off.
Its beam search forgets an end of sequence that does not rank among the first W candidates, so that with EOS ours finds
sequences at least as likely, often more. And for a head that is not tied it warns that `tie_word_embeddings` should be
False, whatever config.json says; the head is loaded all the same.
"""


def main(argv: list[str]) -> None:
    config.parse_flags(argv, __doc__, lambda parser: None)
    transformers.logging.set_verbosity_error()
    found = {variant.name: measure(variant) for variant in VARIANTS}
    rows = {name: {column: _shown(value) for column, value in row.items()} for name, row in found.items()}
    columns = list(next(iter(rows.values())))
    apart = [column for column in columns if column.startswith("packed")]
    tables = "\n\n".join(_table(rows, part) for part in ([c for c in columns if c not in apart], apart))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    machine = f"one CPU ({platform.machine()}), Python {platform.python_version()}"
    text = _TEXT.format(beams=BEAMS, decoded=DECODED, tables=tables, machine=machine, versions=versions)
    _PAGE.write_text(text)
    print(tables, f"\n\nwritten to {_PAGE}")


def _shown(value: Difference | float) -> str:
    return f"{value.absolute:.1e} / {value.relative:.1e}" if isinstance(value, Difference) else f"{value:.0%}"


def _table(rows: dict[str, dict[str, str]], columns: list[str]) -> str:
    lines = [["variant", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(row[column] for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    config.run_door(main)
