"""Score predictions on held-out ground."""

import sys

from terraseg.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
