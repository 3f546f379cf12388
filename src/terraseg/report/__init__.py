"""Figures, maps, tables and the report."""
