"""From footprints to labels: rules, covered share of each pixel, offset between footprints and imagery."""
