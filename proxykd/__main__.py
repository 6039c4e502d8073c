"""``python -m proxykd``: the command line."""

from proxykd.cli import main

if __name__ == "__main__":
    main()
