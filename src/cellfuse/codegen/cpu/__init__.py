"""Program -> LLVM IR as text -> machine code for this processor, through llvmlite."""
