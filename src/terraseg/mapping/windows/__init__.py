"""From a scene to windows and back to blended strips."""
