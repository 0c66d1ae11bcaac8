"""A candidate is compared with its reference, and accepted or refused."""
