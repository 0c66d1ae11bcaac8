"""From a data set on disk to a model input: images, preprocessing, sources of samples."""
