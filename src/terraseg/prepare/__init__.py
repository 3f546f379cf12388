"""From scenes and footprints to a dataset: labels, chips, splits, statistics, audit."""
