"""Raw files to a Dataset: sources, cleaning, splits, images, text, the report, and the loader."""
