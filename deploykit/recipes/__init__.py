"""The contract of a model family, and the card that a model file carries."""
