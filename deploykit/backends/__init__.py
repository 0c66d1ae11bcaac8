"""The runtimes a model can be built for and run in."""
