"""`python -m daemon.cli`: for torchrun, and where the installed command is not on the path."""

from daemon.cli.app import main

if __name__ == "__main__":
    main()
