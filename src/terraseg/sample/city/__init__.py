"""The synthetic city, whose buildings are all known."""
