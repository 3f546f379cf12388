"""Draw the figures and write the report."""

import sys

from terraseg.cli import main

sys.exit(main(["visualize", *sys.argv[1:]]))
