"""What a scores file holds, a detect unit's or an ensemble's; apart from what writes it, which takes long to import."""

import pyarrow as pa

_WORD = pa.dictionary(pa.int32(), pa.string())

SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("section", _WORD),
        ("domain", _WORD),
        ("split", _WORD),  # test; or train, validation: normal clips, scored by models that were not fitted to them
        ("label", pa.int8()),  # null = unknown when this was written
        ("checkpoint", pa.int16()),  # epochs that the extractor had been trained for
        ("detector", _WORD),
        ("pooling", _WORD),
        ("score", pa.float64()),  # higher = more anomalous; null where the detector failed
        ("reason", _WORD),  # why it failed, else null
    ]
)
