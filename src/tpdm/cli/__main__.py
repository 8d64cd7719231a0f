"""``python -m tpdm.cli``."""

from tpdm.cli import main

if __name__ == "__main__":
    main()
