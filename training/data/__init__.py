"""Cases to train on: manifests, preparation, batches."""
