"""The budgets: small functions, small files, few parameters. Tokens are counted too, so that joining lines buys nothing."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(path for folder in ("frostline", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

TOKENS_PER_LINE = 12
LONGEST, USUAL, INIT, FILE, PARAMETERS = 100, 40, 30, 400, 7

_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER}


@dataclass(frozen=True, kw_only=True)
class Function:
    name: str
    where: str
    lines: int
    tokens: int
    parameters: int


def token_lines(source: str) -> list[int]:
    """The line of every token that is not layout; an f-string is one token, as it was before Python 3.12."""
    lines, inside = [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            inside += 1
        if token.type not in _LAYOUT and (not inside or (kind == "FSTRING_START" and inside == 1)):
            lines.append(token.start[0])
        if kind == "FSTRING_END":
            inside -= 1
    return lines


def functions(path: Path, source: str) -> list[Function]:
    """Every function and method of a file, measured without its docstring; what is nested counts in its host as well."""
    tree = ast.parse(source)
    methods = {id(item) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
    tokens = token_lines(source)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        documentation = range(0)
        if ast.get_docstring(node) is not None:
            documentation = range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
        span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        arguments = node.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        count += (arguments.vararg is not None) + (arguments.kwarg is not None)
        if id(node) in methods and not any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list):
            count -= 1
        found.append(
            Function(
                name=node.name,
                where=f"{path}:{node.lineno} {node.name}",
                lines=len(span) - len(documentation),
                tokens=sum(line in span and line not in documentation for line in tokens),
                parameters=count,
            )
        )
    return found


@pytest.fixture(scope="module")
def measured() -> list[Function]:
    return [function for path in CODE for function in functions(path.relative_to(ROOT), path.read_text(encoding="utf-8"))]


def listing(offenders: list[str], rule: str) -> str:
    return f"{rule}; over it:\n  " + "\n  ".join(offenders)


def test_no_function_is_a_giant(measured: list[Function]) -> None:
    over = [f"{f.where}: {f.lines} lines" for f in measured if f.lines > LONGEST]
    assert not over, listing(over, f"a function has at most {LONGEST} lines without its docstring")
    over = [f"{f.where}: {f.tokens} tokens" for f in measured if f.tokens > LONGEST * TOKENS_PER_LINE]
    assert not over, listing(over, f"a function has at most {LONGEST * TOKENS_PER_LINE} tokens")


@pytest.mark.parametrize(("unit", "budget"), [("lines", USUAL), ("tokens", USUAL * TOKENS_PER_LINE)])
def test_nine_functions_in_ten_are_short(measured: list[Function], unit: str, budget: int) -> None:
    sizes = [getattr(f, unit) for f in measured]
    ninth = statistics.quantiles(sizes, n=10)[-1]
    longest = sorted((f for f in measured if getattr(f, unit) > budget), key=lambda f: -getattr(f, unit))
    assert ninth <= budget, listing(
        [f"{f.where}: {getattr(f, unit)}" for f in longest], f"90 % of functions have at most {budget} {unit} (now {ninth:.0f})"
    )


def test_constructors_are_short(measured: list[Function]) -> None:
    over = [
        f"{f.where}: {f.lines} lines, {f.tokens} tokens"
        for f in measured
        if f.name == "__init__" and (f.lines > INIT or f.tokens > INIT * TOKENS_PER_LINE)
    ]
    assert not over, listing(over, f"__init__ has at most {INIT} lines and {INIT * TOKENS_PER_LINE} tokens")


def test_functions_take_few_parameters(measured: list[Function]) -> None:
    over = [f"{f.where}: {f.parameters} parameters" for f in measured if f.parameters > PARAMETERS]
    assert not over, listing(over, f"a function takes at most {PARAMETERS} parameters (self not counted)")


def test_files_are_short() -> None:
    over = []
    for path in CODE + TESTS:
        source = path.read_text(encoding="utf-8")
        lines, tokens = source.count("\n"), len(token_lines(source))
        if lines > FILE or tokens > FILE * TOKENS_PER_LINE:
            over.append(f"{path.relative_to(ROOT)}: {lines} lines, {tokens} tokens")
    assert not over, listing(over, f"a file has at most {FILE} lines and {FILE * TOKENS_PER_LINE} tokens")


def test_the_measure_itself() -> None:
    source = (
        "class A:\n"
        "    def __init__(self, a, /, b, *rest, c=1, **options):\n"
        '        """One.\n\n        Two.\n        """\n'
        '        self.a = f"{a} and {b!r}"\n'
        "    @staticmethod\n"
        "    def plain(x): y = x; return y\n"
    )
    first, second = functions(Path("x.py"), source)
    assert (first.lines, first.parameters) == (2, 5)
    assert first.tokens == 22 + 5  # the signature, and: self . a = "…"
    assert (second.lines, second.parameters) == (1, 1)
    assert second.tokens == 12
