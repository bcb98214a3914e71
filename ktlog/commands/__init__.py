"""The commands of the ktlog tool, one module each."""
