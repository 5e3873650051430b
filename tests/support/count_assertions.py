"""Count the assertions of the tests: python tests/support/count_assertions.py [FOLDER].

Counted are assert statements, `pytest.raises`, `warns` and `fail`, and the assertions of numpy and pandas.
"""

import ast
import sys
from pathlib import Path

CALLS = ("raises", "warns", "fail", "refusal")


def assertions(path: Path) -> int:
    """How many a file has."""
    found = 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found += isinstance(node, ast.Assert)
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += name in CALLS or name.startswith("assert_")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    print(sum(assertions(path) for path in folder.rglob("*.py")))
