"""The leaderboard for people and programs: terminal, Markdown, CSV, Parquet, and a page for a browser."""
