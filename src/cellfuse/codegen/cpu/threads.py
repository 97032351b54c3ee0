"""How threads enter a call of the driver, and how they wait for each other. Knows not what they compute."""

from __future__ import annotations

import sys

from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.cpu.text import Code, Module

# Threads meet: each adds one, and waits until all of this round have. Another process may have a thread's
# core, so that after some looks, a few microseconds, a thread offers its own.
_MEET = """define internal void @meet(ptr %arrived, ptr %rounds, i64 %count) nounwind {
entry:
  %is_alone = icmp sle i64 %count, 1
  br i1 %is_alone, label %done, label %come
come:
  %old = load i64, ptr %rounds, align 8
  %round = add i64 %old, 1
  store i64 %round, ptr %rounds, align 8
  %wanted = mul i64 %round, %count
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel, align 8
  br label %look
look:
  %looks = phi i64 [0, %come], [%more, %again], [%more, %offer]
  %more = add i64 %looks, 1
  %now = load atomic i64, ptr %arrived acquire, align 8
  %is_met = icmp sge i64 %now, %wanted
  br i1 %is_met, label %done, label %wait
wait:
  PAUSE
  %low = and i64 %more, 63
  %is_long = icmp eq i64 %low, 0
  br i1 %is_long, label %offer, label %again
offer:
  %unused = YIELD
  br label %look
again:
  br label %look
done:
  ret void
}
"""


def emit_meet(target: Target) -> str:
    """The text of meet(arrived, rounds, count), with its declarations."""
    yields = "declare i32 @sched_yield()" if sys.platform != "win32" else ""
    pause = "call void @llvm.x86.sse2.pause()" if target.name != "neon" else ""
    declare = "declare void @llvm.x86.sse2.pause()" if pause else ""
    wait = _MEET.replace("PAUSE", pause).replace(
        "YIELD", "call i32 @sched_yield()" if yields else "add i32 0, 0"
    )
    return "\n".join((yields, declare, wait))


def emit_enter(module: Module, name: str) -> None:
    """What OpenMP calls in each thread: (call, function of the thread's number, of the number of threads)."""
    code = Code(module)
    call, number, count = (code.slot("%data", k, "ptr") for k in range(3))
    thread = code.let(f"sext i32 {code.let(f'call i32 {number}()')} to i64")
    threads = code.let(f"sext i32 {code.let(f'call i32 {count}()')} to i64")
    code.do(f"call void @{name}(ptr {call}, i64 {thread}, i64 {threads})")
    code.define(f"enter_{name}", ("ptr %data",), "")


def emit_enter_both(module: Module, name: str) -> None:
    """The same for two calls that know nothing of each other: half of the threads for each."""
    code = Code(module)
    calls, number, count = (code.slot("%data", k, "ptr") for k in range(3))
    thread = code.let(f"sext i32 {code.let(f'call i32 {number}()')} to i64")
    threads = code.let(f"sext i32 {code.let(f'call i32 {count}()')} to i64")
    first, second = (code.slot(calls, k, "ptr") for k in range(2))
    is_alone = code.let(f"icmp eq i64 {threads}, 1")
    with code.where(is_alone):
        for call in (first, second):
            code.do(f"call void @{name}(ptr {call}, i64 0, i64 1)")
    with code.where(code.let(f"xor i1 {is_alone}, true")):
        half = code.let(f"udiv i64 {threads}, 2")
        is_second = code.let(f"icmp sge i64 {thread}, {half}")
        call = code.let(f"select i1 {is_second}, ptr {second}, ptr {first}")
        place = code.let(f"select i1 {is_second}, i64 {code.sub(thread, half)}, i64 {thread}")
        team = code.let(f"select i1 {is_second}, i64 {code.sub(threads, half)}, i64 {half}")
        code.do(f"call void @{name}(ptr {call}, i64 {place}, i64 {team})")
    code.define(f"enter_both_{name}", ("ptr %data",), "")
