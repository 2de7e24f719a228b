"""`python -m mergekern`: the command line."""

from mergekern.cli import main

main(prog_name="mergekern")
