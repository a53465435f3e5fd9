"""Read the machine code of a cubin: registers, local memory, and the instructions of the likely path."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_LABEL = re.compile(r"(\.L_\w+):")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: its guard or None, opcode with modifiers, and operands."""

    guard: str | None
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Code:
    """The machine code of one kernel.

    Attributes:
        registers, stack: of a thread; stack in bytes.
        instructions, labels: all of them, subroutines at the end.
    """

    registers: int
    stack: int
    instructions: list[Instruction]
    labels: dict[str, int]

    def count(self, *names: str) -> int:
        """The number of instructions that have one of these names."""
        return sum(i.name in names for i in self.instructions)

    def likely_path(self, trips: float = 1.0) -> list[tuple[Instruction, float]]:
        """Return (instruction, times executed) along the path that nearly every warp takes.

        A conditional jump over a call is taken: that is how the exact square root and division leave
        out their slow paths; so is one over the jump past a loop of no trips. Other forward jumps are not taken.
        Loops run ``trips`` times.
        """
        path: list[tuple[int, float]] = []
        at = 0
        while at < len(self.instructions):
            path.append((at, 1.0))
            guarded = self._guarded(at)
            target = self._target(at)
            if target == at or (self.instructions[at].name == "EXIT" and not guarded):
                break
            if target is not None and target < at:
                path = [(k, times * trips if k >= target else times) for k, times in path]
                at += 1
            elif target is not None and (not guarded or self._skips_call(at, target) or self._enters_loop(at, target)):
                at = target
            else:
                at += 1
        return [(self.instructions[k], times) for k, times in path if self.instructions[k].name != "NOP"]

    def _target(self, at: int) -> int | None:
        label = re.search(r"\.L_\w+", self.instructions[at].operands)
        return self.labels[label[0]] if self.instructions[at].name == "BRA" and label else None

    def _guarded(self, at: int) -> bool:
        instruction = self.instructions[at]
        return instruction.guard is not None or re.match(r"!?U?P\d", instruction.operands) is not None

    def _skips_call(self, at: int, target: int) -> bool:
        between = range(at + 1, target)
        loops = any((self._target(k) or len(self.instructions)) <= k for k in between)
        return not loops and any(self.instructions[k].name == "CALL" for k in between)

    def _enters_loop(self, at: int, target: int) -> bool:
        """Whether not branching leads, by a jump without a guard, past a loop that starts behind ``target``."""
        exits = [self._target(k) or 0 for k in range(at + 1, target) if not self._guarded(k)]
        loops = [k for k in range(target, max(exits, default=0)) if (self._target(k) or len(self.instructions)) <= k]
        return bool(loops)


def disassemble(cubin: bytes) -> Code:
    """Disassemble the one kernel of a cubin.

    Raises:
        ValueError: there is none, or the tools that Triton ships say something unexpected.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        text = _run("nvdisasm", "-c", file.name)
    resources = {k: int(v) for k, v in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(Instruction(match[1], match[2], match[3].strip()))
    if not instructions or len(resources) != 2:
        raise ValueError(f"no kernel in the cubin: {usage.strip()[:200]}")
    return Code(resources["REG"], resources["STACK"], instructions, labels)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
