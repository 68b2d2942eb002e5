"""From a model reference to a bundle on disk."""
