"""What every room uses: bands, rasters, files, parallel tasks, memory."""
