"""``python -m frostline`` is the command ``frostline``."""

from frostline.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
