"""Groups of commands of the command line; ``proxykd.cli`` puts them together."""
