"""The report of a run as one self-contained page: tables, charts, pictures and sounds of the clips that went wrong."""
