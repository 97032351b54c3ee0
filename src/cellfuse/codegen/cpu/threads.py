"""How threads enter a call of the driver, and how they wait for each other. Knows not what they compute."""

from __future__ import annotations

import sys

from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.cpu.text import Code, Module

# Threads meet: each adds one to `arrived`, and waits until all of this round have; who comes last wakes those
# that sleep, counted behind `arrived`. Another process may have the core of a thread that is to come. After
# some looks a thread therefore sleeps: it has its core back soon when it wakes, where one that stays awake
# or offers its core (sched_yield) comes last of all, milliseconds later. It looks longer where that was
# enough before, less where it was in vain, as when all threads share one core.
_MEET = """define internal void @meet(ptr %arrived, ptr %own, i64 %count) nounwind {
entry:
  %is_alone = icmp sle i64 %count, 1
  br i1 %is_alone, label %done, label %come
come:
  %sleepers = getelementptr i64, ptr %arrived, i64 1
  %limits = getelementptr i64, ptr %own, i64 1
  %limit = load i64, ptr %limits, align 8
  %old = load i64, ptr %own, align 8
  %round = add i64 %old, 1
  store i64 %round, ptr %own, align 8
  %wanted = mul i64 %round, %count
  %before = atomicrmw add ptr %arrived, i64 1 seq_cst, align 8
  %here = add i64 %before, 1
  %is_last = icmp sge i64 %here, %wanted
  br i1 %is_last, label %last, label %look
last:
  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8
  %has_sleepers = icmp sgt i64 %asleep, 0
  br i1 %has_sleepers, label %wake, label %done
wake:
  WAKE
  br label %done
look:
  %looks = phi i64 [%limit, %come], [%left, %pause], [0, %sleep]
  %now = load atomic i64, ptr %arrived seq_cst, align 8
  %is_met = icmp sge i64 %now, %wanted
  br i1 %is_met, label %met, label %wait
wait:
  %left = sub i64 %looks, 1
  %is_long = icmp sle i64 %looks, 0
  br i1 %is_long, label %sleep, label %pause
pause:
  PAUSE
  br label %look
sleep:
  SLEEP
  br label %look
met:
  %in_vain = icmp sle i64 %looks, 0
  %twice = mul i64 %limit, 2
  %quarter = udiv i64 %limit, 4
  %more = call i64 @llvm.umin.i64(i64 %twice, i64 MOST)
  %less = call i64 @llvm.umax.i64(i64 %quarter, i64 LEAST)
  %next = select i1 %in_vain, i64 %less, i64 %more
  store i64 %next, ptr %limits, align 8
  br label %done
done:
  ret void
}
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
"""
_LOOKS = {"MOST": 4000, "LEAST": 50}  # a look takes about 20 ns
_FIRST_LOOKS = 1000
# Linux: a thread sleeps unless `arrived` has changed since it looked.
_FUTEX = {
    "SLEEP": """%more_sleep = atomicrmw add ptr %sleepers, i64 1 seq_cst, align 8
  %slept = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %arrived, i32 128, i64 %now, ptr null)
  %fewer_sleep = atomicrmw sub ptr %sleepers, i64 1 seq_cst, align 8""",
    "WAKE": "%woken = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %arrived, i32 129, i64 2147483647)",
}


def emit_meet(target: Target) -> str:
    """The text of meet(arrived, own, count), with its declarations; `own`: see `emit_own`."""
    text, declared = _MEET, []
    names = dict(_LOOKS, SLEEP="PAUSE", WAKE="", PAUSE="")  # in this order
    if target.name != "neon":
        names["PAUSE"] = "call void @llvm.x86.sse2.pause()"
        declared.append("declare void @llvm.x86.sse2.pause()")
    if sys.platform == "linux":
        names.update(_FUTEX)
        declared.append("declare i64 @syscall(i64, ...)")
    elif sys.platform != "win32":
        names["SLEEP"] = "%unused = call i32 @sched_yield()"
        declared.append("declare i32 @sched_yield()")
    names["FUTEX"] = 98 if target.name == "neon" else 202  # number of the system call
    for name, value in names.items():
        text = text.replace(name, str(value))
    return "\n".join((*declared, text))


def emit_own(code: Code) -> str:
    """What a thread keeps of its meetings in a call: rounds so far, and looks before it sleeps."""
    own = code.let("alloca [2 x i64], align 8")
    code.do(f"store i64 0, ptr {own}, align 8")
    code.do(f"store i64 {_FIRST_LOOKS}, ptr {code.let(f'getelementptr i64, ptr {own}, i64 1')}, align 8")
    return own


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
