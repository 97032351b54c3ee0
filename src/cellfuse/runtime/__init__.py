"""Running a cell over a sequence: the backends, and the choice between them with a reason."""
