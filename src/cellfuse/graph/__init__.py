"""The mathematics of one time step: operations, expressions, tracing, gradients, printed forms."""
