"""``python -m hce_engine`` is ``hce``."""

from .cli import main

if __name__ == "__main__":
    main()
