"""The mutants that cosmic-ray's operators make of the core and of the engines' attack."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from .mutant import ROOT, Mutant
from .selection import SELECTION

# Arithmetic to arithmetic (tensors have no bits), equality to its opposite, order to order: the
# rest raises a TypeError at once or, with strings, is arbitrary.
KEPT = re.compile(
    r"core/(ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Add|Sub|Mul|Div)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)"
    r"|ReplaceComparisonOperator_(Lt|Gt)E?_(Lt|LtE|Gt|GtE|Eq|NotEq)"
    r"|ReplaceUnaryOperator_Delete_\w+|NumberReplacer|AddNot|RemoveDecorator|ExceptionReplacer"
    r"|Replace(TrueWithFalse|FalseWithTrue|AndWithOr|OrWithAnd|\w+With(Break|Continue))"
    r"|ZeroIterationForLoop)"
)


def mutants() -> Iterator[Mutant]:
    """All that compile, each program once."""
    for file, tests in SELECTION.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        seen = set()
        for text in _mutations(source):
            with suppress(SyntaxError):
                program = ast.dump(ast.parse(text))
                line, mutated = _difference(source, text)
                keyword_only = mutated.replace("/,", "*,") == line  # and no multiplication
                if program not in seen and not keyword_only:
                    seen.add(program)
                    yield Mutant(file, text, tests, line, mutated)


def _mutations(source: str) -> Iterator[str]:
    for name in filter(KEPT.fullmatch, operator_names()):
        operator, number = get_operator(name)(), 0
        while (text := mutate_code(source, operator, number)) is not None:
            yield text
            number += 1


def _difference(source: str, text: str) -> tuple[str, str]:
    """The first line that differs, before and after."""
    pairs = zip(source.splitlines(), text.splitlines(), strict=False)
    line, mutated = next((a, b) for a, b in pairs if a != b)
    return " ".join(line.split()), " ".join(mutated.split())
