"""The command ``xweights``: what its words mean, and how results come to a terminal, a pipe or a program.

At import these files need typer and the standard library only; NumPy and the core are imported when a command runs,
because ``xweights --help`` and completion are started again and again.
"""
