"""``python -m rayasd`` is the ``rayasd`` command."""

from rayasd.cli.main import main

if __name__ == "__main__":
    main()
