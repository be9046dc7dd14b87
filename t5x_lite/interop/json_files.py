"""JSON files that other programs wrote."""

import json
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None where there is no file. UserError for a file that is no JSON object."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no JSON ({error}); get it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} holds no JSON object; get it again")
    return content
