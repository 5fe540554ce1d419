"""The command line: each module parses what one command takes, and prints what came of it.

At their top, modules import nothing heavy, so that ``--help`` is quick. What commands do is in the rooms below.
"""
