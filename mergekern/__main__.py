"""`python -m mergekern`: the command line."""

from mergekern.cli import main

if __name__ == "__main__":
    main(prog_name="mergekern")
