"""Map whole scenes with a trained bundle."""

import sys

from terraseg.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
