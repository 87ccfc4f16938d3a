"""What a screen itself says, before any model: contexts, the mean response, which metrics can tell."""
