"""One time step -> a Program over time -> text -> kernel. Knows no cell by name, and no torch."""
