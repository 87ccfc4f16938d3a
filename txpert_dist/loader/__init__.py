"""Cell store in, minibatches out."""
