"""Compare experiments over label fractions and seeds, on the same splits and with the same budget."""

import sys

from terraseg.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
