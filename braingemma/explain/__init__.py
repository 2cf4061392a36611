"""Why the model said it: supervoxels, attribution, pictures."""
