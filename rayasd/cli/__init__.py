"""The command line: what a command takes, and what it then does.

Options and help stand in modules named after commands (sweep, report, score, export, data …), which import nothing
heavy, so that ``--help`` is quick. What a command does, once its imports are paid for, stands beside them: sweeping,
reporting, comparing, scoring, exporting, fetching, recordings.
"""
