"""Things to run on: the demo's real scene, a synthetic city with exact truth, local servers."""
