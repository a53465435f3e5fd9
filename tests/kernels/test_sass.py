"""The path that nearly every warp takes through machine code, on a few lines of it."""

from __future__ import annotations

from fastscore.kernels.inspect.sass import Code, Instruction


def path(text: str, trips: float) -> dict[str, float]:
    """How often each instruction runs, by its operand; lines are ``label:`` or ``[guard] opcode operands``."""
    instructions, labels = [], {}
    for line in text.split("\n"):
        words = line.split()
        if words and words[0].endswith(":"):
            labels[words[0][:-1]] = len(instructions)
        elif words:
            guard = words.pop(0) if words[0].startswith("@") else None
            instructions.append(Instruction(guard, words[0], " ".join(words[1:])))
    found: dict[str, float] = {}
    for instruction, times in Code(32, 0, instructions, labels).likely_path(trips):
        if instruction.name == "FADD":
            found[instruction.operands] = found.get(instruction.operands, 0.0) + times
    return found


LOOP = "\n.L_loop:\nFADD body\n@P1 BRA `(.L_loop)\n.L_end:\nFADD after\nEXIT"


def test_a_loop_runs_its_trips():
    assert path("FADD before" + LOOP, 3.0) == {"before": 1.0, "body": 3.0, "after": 1.0}


def test_a_loop_of_no_trips_is_not_the_likely_one():
    """Triton 3.7 jumps past the loop where there is nothing to do, in a block that a guarded jump leaves out."""
    guard = "@P0 BRA `(.L_loop)\nFADD nothing\nBRA `(.L_end)"
    assert path(guard + LOOP, 3.0) == {"body": 3.0, "after": 1.0}


def test_a_slow_path_is_left_out_and_another_branch_is_not():
    slow = "@!P0 BRA `(.L_fast)\nCALL.REL slow\nFADD slow\nBRA `(.L_join)\n.L_fast:\nFADD fast\n.L_join:\nEXIT"
    assert path(slow, 1.0) == {"fast": 1.0}
    plain = "@!P0 BRA `(.L_else)\nFADD then\nBRA `(.L_join)\n.L_else:\nFADD else\n.L_join:\nEXIT"
    assert path(plain, 1.0) == {"then": 1.0}
