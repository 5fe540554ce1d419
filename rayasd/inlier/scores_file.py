"""The scores file of a detect unit or an ensemble; its writers, slow to import, are elsewhere."""

import pyarrow as pa

HELD_OUT, CROSS_FIT, LEAVE_ONE_OUT, TRAINED_ON = "held-out", "cross-fit", "leave-one-out", "trained-on"
"""How a normal clip's score came about. No detector was fitted to the clip. The extractor was trained without it; or
an ensemble's members that were trained without it scored it; or nothing was trained; or the extractor has seen it."""

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
        ("group", _WORD),  # clips that belong together (data.groups) have one name; null: the clip is alone
        ("calibration", _WORD),  # for normal clips: held-out, cross-fit, leave-one-out, trained-on
        ("score", pa.float64()),  # higher = more anomalous; null where the detector failed
        ("reason", _WORD),  # why it failed, else null
    ]
)
