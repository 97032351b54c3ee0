"""LLVM IR as text: one function at a time, with loops. Knows nothing of recurrent networks."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Int = int | str  # a known number, or the name of a value


@dataclass
class Module:
    """The text of a module: functions, and declarations of what they call.

    Attributes:
        bits: 32 or 64, of the numbers.
        lanes: numbers in a vector.
        has_slow_division: see `target.Target`.
        shared: ends the names of functions that stand in another module, see `products.emit_tiles`.
    """

    bits: int
    lanes: int
    has_slow_division: bool = False
    shared: str = ""
    functions: dict[str, str] = field(default_factory=dict)
    declarations: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> str:
        """The type of one number."""
        return {32: "float", 64: "double"}[self.bits]

    @property
    def vector(self) -> str:
        """The type of a vector of numbers."""
        return f"<{self.lanes} x {self.number}>"

    def declare(self, name: str, result: str, arguments: Sequence[str]) -> None:
        """Declare a function of LLVM or of the C library."""
        self.declarations[name] = f"declare {result} @{name}({', '.join(arguments)})"

    def __str__(self) -> str:
        return "\n".join([*self.declarations.values(), "", *self.functions.values()])


@dataclass
class Loop:
    """Inside a loop: its counter and the values it carries; `next` is to be set to their new values."""

    index: str
    values: list[str]
    next: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


class Code:
    """The body of one function while it is written."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.number, self.vector, self.lanes = module.number, module.vector, module.lanes
        self.integers = f"<{module.lanes} x i{module.bits}>"
        self.truths = f"<{module.lanes} x i1>"
        self.lines: list[str] = []
        self.block = "entry"
        self._count = 0

    def define(self, name: str, arguments: Sequence[str], linkage: str = "internal") -> None:
        """End the function and add it to the module. `arguments` are such as "ptr %out"."""
        head = f"define {linkage} void @{name}({', '.join(arguments)}) nounwind {{\nentry:\n"
        self.module.functions[name] = head + "\n".join(self.lines) + "\n  ret void\n}\n"

    def do(self, text: str) -> None:
        """An instruction without a value."""
        self.lines.append("  " + text)

    def let(self, text: str) -> str:
        """An instruction with a value; returns its name."""
        self._count += 1
        self.lines.append(f"  %v{self._count} = {text}")
        return f"%v{self._count}"

    def _label(self) -> str:
        self._count += 1
        return f"b{self._count}"

    def _start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    # whole numbers

    def add(self, a: Int, b: Int) -> Int:
        """a + b, known now if both are."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0 or b == 0:
            return b if a == 0 else a
        return self.let(f"add i64 {a}, {b}")

    def sub(self, a: Int, b: Int) -> Int:
        """a - b."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.let(f"sub i64 {a}, {b}")

    def mul(self, a: Int, b: Int) -> Int:
        """a * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1 or b == 1:
            return b if a == 1 else a
        return self.let(f"mul i64 {a}, {b}")

    def smaller(self, a: Int, b: Int) -> str:
        """The smaller of two."""
        is_less = self.let(f"icmp slt i64 {a}, {b}")
        return self.let(f"select i1 {is_less}, i64 {a}, i64 {b}")

    # memory

    def at(self, pointer: str, offset: Int) -> str:
        """The address `offset` numbers on."""
        if offset == 0:
            return pointer
        return self.let(f"getelementptr {self.number}, ptr {pointer}, i64 {offset}")

    def slot(self, pointer: str, index: Int, type: str) -> str:
        """Entry `index` of a table of pointers or of 64-bit numbers."""
        address = self.let(f"getelementptr i64, ptr {pointer}, i64 {index}")
        return self.let(f"load {type}, ptr {address}, align 8")

    def load(self, pointer: str, offset: Int = 0) -> str:
        """A vector from memory."""
        return self.let(f"load {self.vector}, ptr {self.at(pointer, offset)}, align {self.module.bits // 8}")

    def prefetch(self, pointer: str, level: int = 3) -> None:
        """Ask for the memory at an address: level 3 for the nearest cache, 2 for the one behind."""
        self.module.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {level}, i32 1)")

    def store(self, value: str, pointer: str, offset: Int = 0) -> None:
        """A vector to memory."""
        self.do(f"store {self.vector} {value}, ptr {self.at(pointer, offset)}, align {self.module.bits // 8}")

    def load_number(self, pointer: str, offset: Int = 0) -> str:
        """One number from memory."""
        return self.let(f"load {self.number}, ptr {self.at(pointer, offset)}")

    def store_number(self, value: str, pointer: str, offset: Int = 0) -> None:
        """One number to memory."""
        self.do(f"store {self.number} {value}, ptr {self.at(pointer, offset)}")

    # vectors

    def splat(self, value: str, type: str = "") -> str:
        """One number in every lane."""
        type = type or self.number
        whole = f"<{self.lanes} x {type}>"
        one = self.let(f"insertelement {whole} poison, {type} {value}, i64 0")
        return self.let(f"shufflevector {whole} {one}, {whole} poison, <{self.lanes} x i32> zeroinitializer")

    def literal(self, value: float) -> str:
        """A known number, as LLVM writes it."""
        if self.module.bits == 32:
            value = struct.unpack("f", struct.pack("f", value))[0]
        return f"0x{struct.unpack('>Q', struct.pack('>d', value))[0]:016X}"

    def constant(self, value: float) -> str:
        """A vector of a known number."""
        return f"splat ({self.number} {self.literal(value)})"

    def whole(self, value: int) -> str:
        """A vector of a known whole number."""
        return f"splat (i{self.module.bits} {value})"

    def first(self, value: str) -> str:
        """The number in the first lane."""
        return self.let(f"extractelement {self.vector} {value}, i64 0")

    def call(self, name: str, *values: str) -> str:
        """An LLVM function of vectors, such as fma."""
        full = f"llvm.{name}.v{self.lanes}f{self.module.bits}"
        self.module.declare(full, self.vector, [self.vector] * len(values))
        return self.let(f"call {self.vector} @{full}({', '.join(f'{self.vector} {v}' for v in values)})")

    def fma(self, a: str, b: str, c: str) -> str:
        """a * b + c, rounded once where the processor can."""
        return self.call("fmuladd", a, b, c)

    def binary(self, name: str, a: str, b: str) -> str:
        """fadd, fsub, fmul or fdiv."""
        flags = "" if name == "fdiv" else "contract "
        return self.let(f"{name} {flags}{self.vector} {a}, {b}")

    def compare(self, how: str, a: str, b: str) -> str:
        """A vector of truths; `how` is LLVM's, such as olt."""
        return self.let(f"fcmp {how} {self.vector} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        """Lane by lane a or b."""
        return self.let(f"select {self.truths} {condition}, {self.vector} {a}, {self.vector} {b}")

    def select_all(self, condition: str, a: str, b: str) -> str:
        """The whole vector a if one truth holds, else b."""
        return self.let(f"select i1 {condition}, {self.vector} {a}, {self.vector} {b}")

    def shuffle(self, a: str, b: str, lanes: Sequence[int]) -> str:
        """Lanes of two vectors, counted through."""
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        return self.let(f"shufflevector {self.vector} {a}, {self.vector} {b}, <{len(lanes)} x i32> <{mask}>")

    # control

    @contextmanager
    def loop(
        self, start: Int, stop: Int, step: Int = 1, carried: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Loop]:
        """for index in range(start, stop, step), with (type, initial value) of what it carries on."""
        head, done = self._label(), self._label()
        before = self.block
        some = self.let(f"icmp slt i64 {start}, {stop}")
        self.do(f"br i1 {some}, label %{head}, label %{done}")
        self._start(head)
        index = self.let("phi")  # completed below, when the end is known
        first = len(self.lines) - 1
        loop = Loop(index, [self.let("phi") for _ in carried])
        yield loop
        after = self.let(f"add nsw i64 {index}, {step}")
        again = self.let(f"icmp slt i64 {after}, {stop}")
        end = self.block
        self.do(f"br i1 {again}, label %{head}, label %{done}")
        self.lines[first] = f"  {index} = phi i64 [{start}, %{before}], [{after}, %{end}]"
        assert len(loop.next) == len(carried)
        for place, ((type, value), new) in enumerate(zip(carried, loop.next, strict=True), first + 1):
            phi = f"phi {type} [{value}, %{before}], [{new}, %{end}]"
            self.lines[place] = f"  {loop.values[place - first - 1]} = {phi}"
        self._start(done)
        loop.results = [
            self.let(f"phi {type} [{value}, %{before}], [{new}, %{end}]")
            for (type, value), new in zip(carried, loop.next, strict=True)
        ]

    def switch(self, value: str, cases: Sequence[int]) -> Iterator[int]:
        """Each known value in turn; what is written meanwhile runs where `value` is that one."""
        labels, done = [self._label() for _ in cases], self._label()
        table = " ".join(f"i64 {case}, label %{label}" for case, label in zip(cases, labels, strict=True))
        self.do(f"switch i64 {value}, label %{done} [{table}]")
        for case, label in zip(cases, labels, strict=True):
            self._start(label)
            yield case
            self.do(f"br label %{done}")
        self._start(done)

    @contextmanager
    def where(self, condition: str) -> Iterator[None]:
        """Run what is written inside only if a truth holds."""
        inside, done = self._label(), self._label()
        self.do(f"br i1 {condition}, label %{inside}, label %{done}")
        self._start(inside)
        yield
        self.do(f"br label %{done}")
        self._start(done)
