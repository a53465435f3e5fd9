"""PTX text, as Triton emits it, to a list of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_STATEMENT = re.compile(r"(?:@(?P<negate>!?)(?P<predicate>%p\d+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)", re.S)


class Fault(RuntimeError):
    """The program did something that a GPU would not do, or would do wrongly."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, e.g. ``@!%p1 ld.global.v2.b32 {%r1, %r2}, [%rd1+8]``.

    Attributes:
        name, modifiers, type: "ld", ("global", "v2"), "b32".
        operands: registers, immediates, ``[addresses]`` and tuples of registers.
        predicate, negate: the guard, or None.
    """

    name: str
    modifiers: tuple[str, ...]
    type: str
    operands: tuple[str | tuple[str, ...], ...]
    predicate: str | None
    negate: bool
    text: str


@dataclass
class Program:
    """A kernel: its parameters in order, threads of a block, instructions and labels."""

    parameters: list[tuple[str, str]]
    threads: int
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(ptx: str) -> Program:
    """Parse the first kernel of a module.

    Raises:
        Fault: a statement that is not understood, or memory kinds that the emulator does not have.
    """
    text = re.sub(r"//[^\n]*", "", ptx)
    head, body = re.search(r"\.entry\s+\w+\((.*?)\)(.*?)\n\}", text, re.S).groups()
    parameters = re.findall(r"\.param\s+\.(\w+)[^,]*?\s(\w+)\s*(?:,|$)", head.strip())
    directives, body = body.split("{", 1)
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", directives)
    program = Program([(name, kind) for kind, name in parameters], int(threads[1]) if threads else 32)
    if ".local" in body or ".const" in text:
        raise Fault("local or constant memory")
    for line in re.sub(r"\n\s*(\.(?:loc|pragma|reg)\b[^\n]*)", "", body).split("\n"):
        for statement in line.split(";"):
            _add(program, statement.strip())
    return program


def _add(program: Program, statement: str) -> None:
    label = re.match(r"([$\w]+):\s*", statement)
    if label:
        program.labels[label[1]] = len(program.instructions)
        statement = statement[label.end() :]
    if not statement:
        return
    match = _STATEMENT.fullmatch(statement)
    if match is None:
        raise Fault(f"cannot parse: {statement}")
    name, *modifiers = match["opcode"].split(".")
    operands = tuple(_operand(o) for o in _OPERAND.findall(match["operands"]))
    kind = modifiers.pop() if modifiers else ""
    program.instructions.append(
        Instruction(name, tuple(modifiers), kind, operands, match["predicate"], match["negate"] == "!", statement)
    )


def _operand(text: str) -> str | tuple[str, ...]:
    if text.startswith("{"):
        return tuple(register.strip() for register in text[1:-1].split(","))
    return re.sub(r"\s", "", text)
