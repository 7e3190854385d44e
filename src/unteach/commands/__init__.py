"""What the command line does, one module a command; :mod:`unteach.cli` only reads arguments and reports errors."""
