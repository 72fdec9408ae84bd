"""`python -m ggplan` is the command line."""

from ggplan.cli import main

if __name__ == "__main__":
    main()
