"""One module a modality: its specification and its conversion from raw files to samples."""
