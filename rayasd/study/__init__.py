"""A study: machines, variants and seeds to compare, from recordings to a leaderboard, without the command line."""
