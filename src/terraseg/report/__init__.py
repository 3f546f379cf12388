"""Figures, tables, maps and the report."""
