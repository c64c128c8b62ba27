"""`python -m reducebench`: the same as `python -m launch` and the command reducebench."""

import sys

from launch.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
