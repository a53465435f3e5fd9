"""Execute PTX in NumPy: every thread of every block in lockstep, with faults where a GPU would go wrong.

Faults: access out of bounds, misaligned or to shared memory nobody wrote; two threads storing different
values to one address; a barrier that part of a block does not reach; warps that touch the same shared
bytes with no barrier in between; a register read before it is set; any instruction not written here,
the fused multiply-add on purpose. What ptxas makes of the PTX is out of sight.
"""

from __future__ import annotations

import re

import numpy as np

from .ptx_parser import Fault, Instruction, Program

WARP = 32
SHARED = 1 << 16  # bytes of shared memory of a block
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "f16": np.float16, "bf16": np.uint16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "bf16x2": np.uint32, "f16x2": np.uint32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f64": np.float64, "f32x2": np.uint64,
}  # fmt: skip
Places = list[tuple[str, np.ndarray]]  # registers and the addresses of their bytes, [active threads, bytes]
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def run(program: Program, grid: tuple[int, ...], arguments: list[np.ndarray | int]) -> None:
    """Execute a kernel over a grid; arrays stand for pointers and are updated in place.

    Arrays that share their first byte are one buffer. The offset of a buffer from a multiple of 16
    bytes is kept, so that false claims of alignment fault.

    Raises:
        Fault: see above.
    """
    with np.errstate(all="ignore"):
        Machine(program, grid, arguments).run()


class Machine:
    """Registers, memory and program counters of all threads."""

    def __init__(self, program: Program, grid: tuple[int, ...], arguments: list[np.ndarray | int]) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self.program, self.blocks = program, x * y * z
        self.count = self.blocks * program.threads
        thread = np.arange(self.count)
        self.block, self.warp = thread // program.threads, thread // WARP
        tid, self.lane = thread % program.threads, thread % program.threads % WARP
        special = {
            "%tid.x": tid, "%tid.y": 0, "%tid.z": 0, "%ntid.x": program.threads, "%laneid": self.lane,
            "%ctaid.x": self.block % x, "%ctaid.y": self.block // x % y, "%ctaid.z": self.block // (x * y),
            "%nctaid.x": x, "%nctaid.y": y, "%nctaid.z": z,
        }  # fmt: skip
        self.registers = {k: np.broadcast_to(np.asarray(v, np.uint32), self.count).copy() for k, v in special.items()}
        self.registers["global_smem"] = np.zeros(self.count, np.uint32)
        self.pc = np.zeros(self.count, np.int64)
        self.active = np.ones(self.count, bool)
        self._place(arguments)
        # Of each shared byte: the barrier interval and the warp of the last write and the last read.
        self.shared = np.zeros(self.blocks * SHARED, np.uint8)
        self.interval = np.zeros(self.blocks, np.int32)
        self.written, self.read = (np.full((2, self.blocks * SHARED), -1, np.int32) for _ in range(2))

    def _place(self, arguments: list[np.ndarray | int]) -> None:
        if len(arguments) > len(self.program.parameters):
            raise Fault(f"{len(arguments)} arguments for {len(self.program.parameters)} parameters")
        self.parameters, self.buffers, top = {}, {}, 4096
        values = [*arguments, *[0] * (len(self.program.parameters) - len(arguments))]  # Triton's scratch pointers
        for (name, kind), value in zip(self.program.parameters, values, strict=True):
            if isinstance(value, np.ndarray):
                pointer = value.__array_interface__["data"][0]
                if pointer not in self.buffers:
                    self.buffers[pointer] = (top + pointer % 16, value.reshape(-1).view(np.uint8))
                    top += (value.nbytes // 4096 + 2) * 4096
                value = self.buffers[pointer][0]
            self.parameters[name] = np.array(value).astype(TYPES[kind])
        self.memory, self.inside = np.zeros(top, np.uint8), np.zeros(top, bool)
        for base, data in self.buffers.values():
            self.memory[base : base + data.size], self.inside[base : base + data.size] = data, True

    def run(self) -> None:
        """Run to the end: the threads that lag behind go first, so that paths join again."""
        end = len(self.program.instructions)
        while (at := int(self.pc.min())) < end:
            instruction = self.program.instructions[at]
            here = self.pc == at
            self.pc[here] = at + 1
            self.active = here
            if instruction.predicate:
                self.active = here & (self.value(instruction.predicate, "pred") ^ instruction.negate)
            execute = getattr(self, f"op_{instruction.name}", None)
            try:
                if execute is None:
                    self._arithmetic(instruction)
                else:
                    execute(instruction)
            except Fault as fault:
                raise Fault(f"{fault}: {instruction.text}") from None
        for base, data in self.buffers.values():
            data[:] = self.memory[base : base + data.size]

    # Registers hold raw bits; the instruction's type says what they mean.

    def value(self, operand: str, kind: str) -> np.ndarray:
        """Return an operand of all threads as ``kind``."""
        if operand[0] == "%" or operand == "global_smem":
            if operand not in self.registers:
                raise Fault(f"{operand} is read before it is set")
            bits = self.registers[operand]
            return bits if kind == "pred" else bits.astype(RAW[np.dtype(TYPES[kind]).itemsize]).view(TYPES[kind])
        if kind == "pred":  # a literal: Triton 3.6 and later write mov.pred %p, -1
            return np.full(self.count, int(operand, 0) != 0)
        raw = RAW[np.dtype(TYPES[kind]).itemsize]
        number = int(operand[2:], 16) if operand[:2] in ("0f", "0d") else int(operand.rstrip("U"), 0)
        return np.full(self.count, number & int(np.iinfo(raw).max), raw).view(TYPES[kind])

    def set(self, register: str, result: np.ndarray) -> None:
        """Write a register in the active threads."""
        if register == "_":
            return
        result = np.ascontiguousarray(result)
        if result.dtype != bool:
            result = result.view(RAW[result.dtype.itemsize])
        old = self.registers.get(register)
        if old is None:
            old = np.zeros(self.count, result.dtype)
        self.registers[register] = np.where(self.active, result.astype(old.dtype), old)

    # Control flow.

    def op_bra(self, i: Instruction) -> None:
        self.pc[self.active] = self.program.labels[i.operands[0]]

    def op_ret(self, i: Instruction) -> None:
        self.pc[self.active] = len(self.program.instructions)

    def op_bar(self, i: Instruction) -> None:
        if "warp" in i.modifiers:
            return
        share = self.active.reshape(self.blocks, -1)
        if (share.any(1) != share.all(1)).any():
            raise Fault("part of a block reaches the barrier")
        self.interval += share.all(1)

    # Memory.

    def op_ld(self, i: Instruction) -> None:
        if "param" in i.modifiers:
            name = re.fullmatch(r"\[(\w+)\]", i.operands[1])[1]
            self.set(i.operands[0], np.broadcast_to(self.parameters[name], self.count))
            return
        self._load(i, *self._vector(i, i.operands[0], i.operands[1]))

    def op_st(self, i: Instruction) -> None:
        self._store(i, *self._vector(i, i.operands[1], i.operands[0]))

    def op_ldmatrix(self, i: Instruction) -> None:
        self._load(i, *self._matrices(i, i.operands[0], i.operands[1]))

    def op_stmatrix(self, i: Instruction) -> None:
        self._store(i, *self._matrices(i, i.operands[1], i.operands[0]))

    def _load(self, i: Instruction, item: int, memory: np.ndarray, places: Places) -> None:
        for register, at in places:
            result = np.zeros(self.count, RAW[item])
            result[self.active] = _gather(memory, at)
            self.set(register, result)

    def _store(self, i: Instruction, item: int, memory: np.ndarray, places: Places) -> None:
        for at, bits in [(at, self.value(register, f"b{8 * item}")[self.active]) for register, at in places]:
            for byte in range(item):
                memory[at[:, byte]] = (bits >> bits.dtype.type(8 * byte)).astype(np.uint8)
            if (_gather(memory, at) != bits).any():
                raise Fault("two threads store different values to one address")

    def _vector(self, i: Instruction, registers: object, address: str) -> tuple[int, np.ndarray, Places]:
        """Check an access; return (bytes of an item, memory, addresses of each register in the active threads)."""
        registers = registers if isinstance(registers, tuple) else (registers,)
        item = np.dtype(TYPES[i.type]).itemsize
        size = item * len(registers)
        at = self._address(address)[self.active]
        if (at % size).any():
            raise Fault(f"misaligned {size}-byte access")
        memory = self.memory
        if "global" not in i.modifiers:
            memory, at = self.shared, self._shared(at, size, i.name.startswith("st"))
        elif at.size:
            last = at + size - 1
            if at.min() < 0 or last.max() >= len(memory) or not (self.inside[at] & self.inside[last]).all():
                raise Fault("out of bounds")
        each = at[:, None] + np.arange(item)
        return item, memory, [(register, each + k * item) for k, register in enumerate(registers)]

    def _matrices(self, i: Instruction, registers: object, address: str) -> tuple[int, np.ndarray, Places]:
        """As _vector, for 8x8 matrices of 16-bit items: lane 8 k + r holds the address of row r of matrix k,
        and each lane holds two neighbours of a row, four lanes a row; transposed, of a column."""
        if "m8n8" not in i.modifiers or not self.active.all():
            raise Fault("not an instruction of this emulator")
        rows, first = self._address(address), np.arange(self.count) - self.lane
        places = []
        for k, register in enumerate(registers if isinstance(registers, tuple) else (registers,)):
            halves = []
            for half in (0, 1):
                place = self.lane // 4, 2 * (self.lane % 4) + half
                row, column = place[::-1] if "trans" in i.modifiers else place
                start = rows[first + 8 * k + row]
                if (start % 16).any():
                    raise Fault("misaligned 16-byte access")
                halves.append(self._shared(start + 2 * column, 2, i.name.startswith("st")))
            places.append((register, np.stack([halves[0], halves[0] + 1, halves[1], halves[1] + 1], 1)))
        return 4, self.shared, places

    def _address(self, operand: str) -> np.ndarray:
        base, offset = re.fullmatch(r"\[([%\w.]+)(?:\+(-?\d+))?\]", operand).groups()
        return self.value(base, "u64").astype(np.int64) + int(offset or 0)

    def _shared(self, at: np.ndarray, size: int, store: bool) -> np.ndarray:
        """Return where the active threads' addresses lie in ``self.shared``, after checks."""
        if at.size and (at.min() < 0 or at.max() + size > SHARED):
            raise Fault("out of bounds")
        at = at + self.block[self.active] * SHARED
        each = at[:, None] + np.arange(size)
        interval = np.broadcast_to(self.interval[self.block[self.active]][:, None], each.shape)
        warp = np.broadcast_to(self.warp[self.active][:, None], each.shape)
        if not store and (self.written[0][each] < 0).any():
            raise Fault("shared memory is read before it is written")
        for marks in (self.written, self.read) if store else (self.written,):
            if ((marks[0][each] == interval) & (marks[1][each] != warp)).any():
                raise Fault("two warps meet in shared memory without a barrier")
        mine = self.written if store else self.read
        mine[0][each], mine[1][each] = interval, warp
        return at

    def op_shfl(self, i: Instruction) -> None:
        source, distance = self.value(i.operands[1], "b32"), self.value(i.operands[2], "u32").astype(np.int64)
        lane = {"bfly": self.lane ^ distance, "down": self.lane + distance, "up": self.lane - distance, "idx": distance}
        lane = lane[i.modifiers[1]]
        lane = np.where((lane < 0) | (lane >= WARP), self.lane, lane)
        thread = np.arange(self.count) - self.lane + lane
        if not self.active[thread[self.active]].all():
            raise Fault("a shuffle reads an inactive thread")
        self.set(i.operands[0].split("|")[0], source[thread])

    # Moves, conversions, comparisons.

    def op_mov(self, i: Instruction) -> None:
        target, source = i.operands
        if isinstance(target, tuple):
            bits = self.value(source, i.type)
            part = 8 * bits.dtype.itemsize // len(target)
            for k, register in enumerate(target):
                self.set(register, (bits >> bits.dtype.type(part * k)).astype(RAW[part // 8]))
        elif isinstance(source, tuple):
            wide = TYPES[i.type]
            part = 8 * np.dtype(wide).itemsize // len(source)
            result = np.zeros(self.count, wide)
            for k, register in enumerate(source):
                # One half of a packed pair may be unused and never set.
                bits = (
                    self.value(register, f"b{part}")
                    if register in self.registers
                    else np.full(self.count, 0xFFDEAD, wide)
                )
                result |= bits.astype(wide) << wide(part * k)
            self.set(target, result)
        else:
            self.set(target, self.value(source, i.type))

    def op_cvta(self, i: Instruction) -> None:
        self.set(i.operands[0], self.value(i.operands[1], "b64"))

    def op_cvt(self, i: Instruction) -> None:
        to, source = i.modifiers[-1], i.type
        if to in ("bf16x2", "f16x2"):  # two sources, the first in the upper half
            high, low = (_narrow(self.value(o, "f32"), to[:-2]).astype(np.uint32) for o in i.operands[1:])
            self.set(i.operands[0], high << np.uint32(16) | low)
            return
        v = self.value(i.operands[1], source)
        if source == "bf16":
            v = (v.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if to in ("bf16", "f16"):
            self.set(i.operands[0], _narrow(v.astype(np.float32), to))
        elif TYPES[to] in (np.float32, np.float64):
            if not ({"rn"} & set(i.modifiers)) and (np.dtype(TYPES[to]).itemsize < v.itemsize or v.dtype.kind != "f"):
                raise Fault("a conversion that rounds in another way")
            self.set(i.operands[0], v.astype(TYPES[to]))
        elif v.dtype.kind == "f":
            rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[i.modifiers[0]]
            limits = np.iinfo(TYPES[to])
            whole = np.clip(
                np.nan_to_num(rounding(v).astype(np.float64), posinf=2.0**70, neginf=-(2.0**70)), limits.min, limits.max
            )
            self.set(i.operands[0], whole.astype(TYPES[to]))
        else:
            self.set(i.operands[0], v.astype(TYPES[to]))

    def op_setp(self, i: Instruction) -> None:
        a, b = (self.value(o, i.type) for o in i.operands[1:3])
        compare = i.modifiers[0]
        unordered = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(self.count, bool)
        if compare in ("lo", "ls", "hi", "hs"):
            compare = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[compare]
        result = getattr(a, f"__{compare[:2]}__")(b)
        self.set(i.operands[0], result | unordered if compare.endswith("u") else result & ~unordered)

    def op_selp(self, i: Instruction) -> None:
        a, b = (self.value(o, i.type) for o in i.operands[1:3])
        self.set(i.operands[0], np.where(self.value(i.operands[3], "pred"), a, b))

    # Arithmetic: one table for floats, one for integers.

    def _arithmetic(self, i: Instruction) -> None:
        if i.type == "pred":
            result = PREDICATE[i.name](*(self.value(o, "pred") for o in i.operands[1:]))
        elif i.type in ("f32", "f64", "f32x2"):
            if i.name not in FLOAT or {"ftz", "sat", "approx", "full"} & set(i.modifiers):
                raise Fault("not an instruction of this emulator")
            name = f"{i.name}.NaN" if "NaN" in i.modifiers else i.name
            values = (self.value(o, i.type) for o in i.operands[1:])
            result = FLOAT[name](*(v.view(np.float32) if i.type == "f32x2" else v for v in values))
            result = result.view(np.uint64) if i.type == "f32x2" else result
        elif i.name in ("mul", "mad") and "wide" in i.modifiers:
            wide = WIDER[i.type]
            a, b = (self.value(o, i.type).astype(TYPES[wide]) for o in i.operands[1:3])
            result = a * b if i.name == "mul" else a * b + self.value(i.operands[3], wide)
        elif i.name in INTEGER and "cc" not in i.modifiers:
            name = f"{i.name}.hi" if "hi" in i.modifiers else i.name
            counts = i.name in ("shl", "shr", "bfe")  # their second and third operands are u32 whatever the type
            kinds = [i.type, "u32", "u32"] if counts else [i.type] * 4
            result = INTEGER[name](*(self.value(o, k) for o, k in zip(i.operands[1:], kinds, strict=False)))
        else:
            raise Fault("not an instruction of this emulator")
        self.set(i.operands[0], result)


def _gather(memory: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(memory[at]).view(RAW[at.shape[1]])[:, 0]


def _narrow(v: np.ndarray, to: str) -> np.ndarray:
    """float32 -> the bits of bf16 or f16, to nearest even."""
    if to == "f16":
        return v.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(v).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(v), 0x7FFF, rounded).astype(np.uint16)


def _shift_left(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    bits = 8 * a.itemsize
    return np.where(c < bits, a << np.minimum(c, bits - 1).astype(a.dtype), 0).astype(a.dtype)


def _shift_right(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    bits = 8 * a.itemsize
    shifted = a >> np.minimum(c, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(c < bits, shifted, 0).astype(a.dtype)


def _high(a: np.ndarray, b: np.ndarray, wide: type) -> np.ndarray:
    if a.itemsize != 4:
        raise Fault("mul.hi of another width than 32")
    return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)


def _field(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe: ``length`` bits from bit ``start``; signed types extend the highest bit of the field."""
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    start, length = np.minimum(start & 255, 63), np.minimum(length & 255, 32)
    spare = (64 - np.maximum(length, 1)).astype(wide)
    field = (a.astype(wide) >> start.astype(wide)) << spare >> spare
    return np.where(length == 0, 0, field).astype(a.dtype)


def _permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt: each nibble of the selector picks one byte of {b, a}."""
    source, result = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32), np.zeros(len(a), np.uint32)
    for k in range(4):
        nibble = selector >> np.uint32(4 * k) & np.uint32(15)
        if (nibble > 7).any():
            raise Fault("prmt that replicates signs")
        byte = source >> (np.uint64(8) * nibble.astype(np.uint64)) & np.uint64(255)
        result |= byte.astype(np.uint32) << np.uint32(8 * k)
    return result


def _lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.zeros_like(a)
    for k in range(8):
        if table[0] >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result


PREDICATE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not, "mov": np.array}
FLOAT = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt, "neg": np.negative,
    "abs": np.abs, "min": np.fmin, "max": np.fmax, "min.NaN": np.minimum, "max.NaN": np.maximum,
}  # fmt: skip
INTEGER = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": lambda a, b, c: a * b + c,
    "mul.hi": lambda a, b: _high(a, b, np.int64 if a.dtype.kind == "i" else np.uint64),
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative,
    "abs": np.abs, "min": np.minimum, "max": np.maximum, "shl": _shift_left, "shr": _shift_right,
    "bfe": _field, "prmt": _permute, "lop3": _lop3,
}  # fmt: skip
