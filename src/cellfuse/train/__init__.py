"""`cellfuse train`: known tasks on which any cell can be trained, compared and pictured.

Reading order: `task` (what a task is), `tasks/` (one file each), `loop` (the training itself),
`launch` (devices and processes), `command` (the options).
"""
