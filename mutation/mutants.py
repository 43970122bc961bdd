"""The mutants of a module: its source with one thing changed.

Cosmic Ray's operators (https://cosmic-ray.readthedocs.io) change comparisons, arithmetic, numbers, `and`, `or`, `not`,
constants, loops and exceptions. One of ours leaves out a statement: a call, a `raise`, an assignment in place, a
deletion. Left alone is what decides nothing:

* what declares: type annotations, the options of dataclasses, the mark of keyword-only parameters;
* constants and defaults: docs/limits.md has those, each with its test;
* sentences for people: an f-string with a blank in it, with what it says of numbers (that there is one is not left
  alone: a `raise` is left out, its condition is turned round);
* how much a memo keeps (`_MAX_MEMO`): it changes how long a decision takes, never which one.
"""

from __future__ import annotations

import ast
import difflib
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

#: Of what an operator can be replaced by: its opposite and, of an order, its neighbour. The rest die of the same tests.
_REPLACED: Final = re.compile(
    r"core/(?:ReplaceComparisonOperator_(?:Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt"
    r"|Is_IsNot|IsNot_Is|In_NotIn|NotIn_In)"
    r"|ReplaceBinaryOperator_(?:Add_Sub|Sub_Add|Mul_FloorDiv|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|Pow_Mul|LShift_RShift"
    r"|RShift_LShift|BitAnd_BitOr|BitOr_BitAnd|BitXor_BitAnd)"
    r"|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|AddNot"
    r"|ReplaceUnaryOperator_(?:USub_UAdd|Delete_Not|Delete_USub|Delete_Invert)|ExceptionReplacer"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ZeroIterationForLoop|NumberReplacer)"
)
_Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed module.

    Attributes:
        module: its dotted name.
        operator: what changed it.
        line: the number of the first line that differs, from 1.
        before: the lines that differ, as they were, stripped.
        after: as they are.
        source: all of it.
    """

    module: str
    operator: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """What it is known by in `explained.txt`, wherever in the file its line stands."""
        return f"{self.module} | {self.before} -> {self.after}"


def mutants(module: str, source: str) -> list[Mutant]:
    """Return the mutants of a module, each once, by line."""
    tree = ast.parse(source)
    made: dict[str, Mutant] = {}
    for operator, changed in (
        *_of_cosmic_ray(source, _declarations(source, tree)),
        *_without_a_statement(source, tree),
    ):
        if changed != source and _compiles(changed) and changed not in made:
            made[changed] = _described(module, operator, source, changed)
    return sorted(made.values(), key=lambda each: (each.line, each.operator, each.after))


def _of_cosmic_ray(source: str, declarations: list[tuple[_Place, _Place]]) -> Iterator[tuple[str, str]]:
    # Imported here, so that the rest can be tested where Cosmic Ray is not installed.
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        if not _REPLACED.fullmatch(name):
            continue
        operator = get_operator(name)()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            if not any(begin <= place < end for begin, end in declarations):
                changed = mutate_code(source, operator, occurrence)
                if changed is not None:
                    yield name.removeprefix("core/"), changed


def _declarations(source: str, tree: ast.AST) -> list[tuple[_Place, _Place]]:
    """From where to where something stands that is declared, or told, and decides nothing."""
    found: list[ast.expr | ast.stmt] = []
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as said):
                found.append(said)
            case ast.AnnAssign(annotation=said, value=value):
                found += [said, *([value] if isinstance(value, ast.Constant) else [])]
            case ast.FunctionDef(returns=said, args=parts) | ast.AsyncFunctionDef(returns=said, args=parts):
                found += [each for each in (said, *parts.defaults, *parts.kw_defaults) if each is not None]
            case ast.ClassDef(decorator_list=[ast.expr() as said]):
                found.append(said)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                found.append(node)
            case ast.JoinedStr(values=parts) if any(_has_blank(part) for part in parts):
                found.append(node)
            case ast.Compare(comparators=[ast.Name(id="_MAX_MEMO")]):
                found.append(node)
            case ast.Module(body=body):
                found += [each for each in body if isinstance(each, ast.Assign)]
    places = [((each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0)) for each in found]
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    stars = (one for one, after in pairwise(tokens) if (one.string, after.string) == ("*", ","))
    places += [(star.start, star.end) for star in stars]
    return places


def _has_blank(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value


def _without_a_statement(source: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise | ast.AugAssign | ast.Delete | ast.Expr):
            continue
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call | ast.Await):
            continue  # a docstring, or a yield
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        indent = lines[first][: node.col_offset]
        if indent.strip():
            continue  # something else stands before it in its line
        yield "LeaveOut", "".join((*lines[:first], f"{indent}pass\n", *lines[last:]))


def _compiles(source: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(source, "<mutant>", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _described(module: str, operator: str, source: str, changed: str) -> Mutant:
    old, new = source.splitlines(), changed.splitlines()
    ((_, begin, end, new_begin, new_end),) = [
        code for code in [_changed(difflib.SequenceMatcher(a=old, b=new, autojunk=False))] if code
    ]
    before = " ".join(line.strip() for line in old[begin:end])
    after = " ".join(line.strip() for line in new[new_begin:new_end])
    return Mutant(module, operator, begin + 1, before, after, changed)


def _changed(matcher: difflib.SequenceMatcher[str]) -> tuple[str, int, int, int, int]:
    """From the first line that differs to the last one."""
    codes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    return "replace", codes[0][1], codes[-1][2], codes[0][3], codes[-1][4]
