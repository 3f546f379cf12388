"""Get scenes and labels, and prepare the dataset: download, labels, city, preprocess, import."""

import sys

from terraseg.cli import main

sys.exit(main(["data", *sys.argv[1:]]))
