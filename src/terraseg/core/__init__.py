"""Shared by all rooms: bands, rasters, files, settings, parallel tasks, memory."""
