"""From scores to a ranked table: metrics, cells, selection, leaderboard."""
