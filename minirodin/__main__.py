import sys

from minirodin.cli import main

if __name__ == "__main__":
    sys.exit(main())
