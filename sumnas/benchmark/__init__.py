"""True accuracies: a pool of architectures trained here, or the table of a published benchmark."""
