"""What benchmarks found, a file each in benchmarks/results/, and the tables of RESULTS.md, which are made of them.

python -m benchmarks.results

writes the tables anew, as a benchmark with `--record` does. A table stands between `<!-- results: NAME -->` and
`<!-- end -->`; what is around it is written by hand.
"""

import json
import os
import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.files import write_whole

_FOLDER = Path(__file__).parent / "results"
_PAGE = Path(__file__).parent / "RESULTS.md"
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
_INSTRUCTIONS = {  # widest first
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 and bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "ctranslate2")


def main(argv: list[str]) -> None:
    config.parse_flags(argv, __doc__, lambda parser: None)
    write_page()


def record(
    name: str, command: Sequence[str], columns: Sequence[str], rows: Mapping[str, Sequence[str]], raw: Mapping[str, Any]
) -> None:
    """Keeps a table and the numbers it was made of, with machine and versions, and writes RESULTS.md anew."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", *command]),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "versions": {package: version for package in _PACKAGES if (version := _version(package))},
        "columns": list(columns),
        "rows": {label: list(cells) for label, cells in rows.items()},
        "raw": dict(raw),
    }
    _FOLDER.mkdir(exist_ok=True)
    write_whole(_FOLDER / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
    write_page()


def write_page() -> None:
    write_whole(_PAGE, page(_PAGE.read_text()).encode())


def page(text: str) -> str:
    """RESULTS.md with every table as its file has it. UserError for one without a file, and for a file without one."""
    tables = {file.stem: table(json.loads(file.read_text())) for file in sorted(_FOLDER.glob("*.json"))}
    shown = {block[2] for block in _BLOCK.finditer(text)}
    if missing := shown ^ set(tables):
        raise UserError(
            f"{', '.join(sorted(missing))}: stands in only one of {_PAGE.name} and {_FOLDER.name}/; write its two "
            "comments where the table belongs, or record it"
        )
    return _BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]}{block[3]}", text)


def table(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    lines = [
        f"`{found['command']}`, {found['date']}, {machine['cores']} cores of {machine['cpu']},",
        f"Python {machine['python']}, {versions}.",
        "",
        *_lines(["", *found["columns"]], ["---"] * (1 + len(found["columns"]))),
        *_lines(*([label, *cells] for label, cells in found["rows"].items())),
    ]
    return "\n".join(lines) + "\n"


def _lines(*rows: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _cpu() -> str:
    """As Linux names it, and its widest instructions: machines of one name differ in them, and so in speed."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    said = {key.strip(): value.strip() for key, _, value in lines}
    has = said.get("flags", "").split()
    widest = next((name for flag, name in _INSTRUCTIONS.items() if flag in has), "")
    return " with ".join(filter(None, [said.get("model name", platform.machine()), widest]))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    config.run_door(main)
