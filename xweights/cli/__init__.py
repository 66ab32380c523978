"""The command line ``xweights``: its arguments, its commands and their output.

At import these files need typer and the standard library only; NumPy and the core are imported when a command runs,
because a shell starts ``xweights --help`` and completion very often.
"""
