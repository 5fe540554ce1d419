"""The command line: read options, call one function, render with rich. Heavy imports wait until a command runs."""
