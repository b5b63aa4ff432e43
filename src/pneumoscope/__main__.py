"""`python -m pneumoscope`, for launchers that start a module."""

from pneumoscope.cli import main

if __name__ == "__main__":
    main()
