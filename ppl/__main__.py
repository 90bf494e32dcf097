"""`python -m ppl` is the command `ppl`."""

from ppl.cli.app import main

if __name__ == "__main__":
    main()
