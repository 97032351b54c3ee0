"""Hand-written float64 references, one file per cell, from the papers. They import nothing of cellfuse."""
