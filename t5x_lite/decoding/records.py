"""Prompts in and answers out: records of .jsonl, .csv and .txt files, and files that are whole or not there."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from t5x_lite.errors import UserError, nearest
from t5x_lite.run_folder import nearest_folder

Record = dict[str, Any]


def read(path: str | Path, needed: Sequence[str] = ("prompt",), reserved: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a file in order: objects of .jsonl, rows of .csv under its header, lines of .txt as "prompt".

    UTF-8 with or without a byte order mark; empty lines are no records. Raises UserError, which names file and line,
    for what cannot be read, lacks text under a `needed` name, or has a field of a `reserved` one.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv, ".txt": lambda _, file: lines(file)}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path}: files of records are .jsonl, .csv or .txt, not {suffix or 'without extension'}")
    if not Path(path).is_file():
        raise UserError(f"no file {str(path)!r}{nearest_folder(epath.Path(path))}")
    try:
        # A quoted cell of CSV may hold line ends of its own, which are the reader's to see.
        with open(path, encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as file:
            for number, record in readers[suffix](path, file):
                _check(f"{path}:{number}", record, needed, reserved)
                yield record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 {suffix} ({error})") from None


def lines(file: Iterable[str]) -> Iterator[tuple[int, Record]]:
    """(line number, {"prompt": line}) of the lines that are not empty."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, {"prompt": line.rstrip("\r\n")}


def _json_lines(path: str | Path, file: Iterable[str]) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            _json(record).encode()  # half of a surrogate pair, "\ud83d", is JSON and cannot be written as UTF-8
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); one object a line") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a {type(record).__name__}, not a JSON object with named fields")
        yield number, record


def _csv(path: str | Path, file: Iterable[str]) -> Iterator[tuple[int, Record]]:
    rows = csv.reader(file)
    header = next(rows, None)
    if header is None:
        raise UserError(f"{path}: empty; its first line must name the columns")
    for cells in filter(None, rows):
        if len(cells) != len(header):
            named = ", ".join(header)
            raise UserError(f"{path}:{rows.line_num}: {len(cells)} cells where the header has {len(header)} ({named})")
        yield rows.line_num, dict(zip(header, cells, strict=True))


def _check(where: str, record: Record, needed: Sequence[str], reserved: Sequence[str]) -> None:
    for name in needed:
        if name not in record:
            raise UserError(
                f"{where}: no {name!r}{nearest(name, record)}; there are {', '.join(record) or 'no fields'}"
            )
        if not isinstance(record[name], str):
            raise UserError(f"{where}: {name!r} is {record[name]!r:.40}, not text")
    for name in reserved:
        if name in record:
            raise UserError(f"{where}: a field {name!r}, which is the model's own in the output; rename it")


def write_whole(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A .jsonl file under its name only when all of it is on the disk."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{_json(record)}\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def join(parts: Iterable[Path], path: Path) -> None:
    """Files one after the other as one; as `write_whole`."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with open(unfinished, "wb") as file:
        for part in parts:
            file.write(part.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
