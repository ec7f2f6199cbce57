"""The closed list of reason codes in `outcomes.parquet`, each with the sentence a user reads.

Add a code here before using it; `tests/preprocess/test_reasons.py` refuses any other.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    # any modality
    "mask": "a dense label, not an image: it lies in a masks or labels folder, or was given to --masks",
    "label_table": "a table given to --labels: its columns were read as labels",
    "not_an_input": "a kind of file this modality does not read (text, licence, archive of another kind)",
    "unsupported_format": "a known data format that this modality does not read; convert it first",
    "unreadable": "the file could not be opened or is not what its name says",
    "empty": "the file holds no bytes or no content",
    "too_large": "decoding would exceed the size limit for untrusted input; raise --max-pixels if it is genuine",
    "limit": "left out by --limit",
    "duplicate": "the same content as another input; one copy was kept",
    "duplicate_instance": "a second copy of one DICOM instance; the lossless or first copy was kept",
    "duplicate_position": "a second slice at one position; the lossless or first copy was kept",
    "worker_died": "its worker was killed or crashed; --extend tries again, with fewer --workers if memory ran out",
    "stalled": "no progress for 30 s; see to the file and its disk, then --extend tries it again",
    "erased": "its subject was taken out of this set by `medcoss erase` and does not come back",
    "internal": "an unexpected error while converting; run with --debug and report it",
    # DICOM
    "truncated_pixels": "the pixel data is shorter than the header says: copy the file again from its source",
    "no_pixels": "a DICOM object without pixel data (report, structure set, index)",
    "unsupported_syntax": "the transfer syntax cannot be decoded here; `medcoss doctor` lists the codecs",
    "burned_in": "the header says that text is burned into the pixels; --allow-burned-in takes it",
    "secondary_capture": "a screen capture, not an acquisition; --allow-secondary-capture takes it",
    "localizer": "a scout or localizer image",
    # report
    "no_text": "no report text was found in it",
    "too_short": "fewer than 3 words are left after cleaning",
    "no_text_column": "a table without any of the columns named by --text-column",
    "encoding": "the text is not valid in the declared encoding (UTF-8 unless --encoding says otherwise)",
    "malformed_rows": "rows of a table could not be read (cells, quotes, encoding, length); its message counts them",
    "conflicting_labels": "the same text stands under two different labels",
    # xray
    "multi_frame": "several frames in one radiograph file; only single images are samples",
    "for_processing": "a FOR PROCESSING image: raw detector values, not for viewing; export the FOR PRESENTATION one",
    "not_a_radiograph": "its modality is not CR, DX, DR, RG, PX or IO",
    "not_a_view": "its view is not among those asked for by --view",
    "other_body_part": "its body part is not among those asked for by --body-part",
    # volumes
    "too_few_slices": "fewer than 8 native slices or 12 mm: too thin a volume for one window",
    "too_thick": "slices lie more than 5 mm apart",
    "gap": "slices are missing inside the series",
    "variable_spacing": "the distance between slices varies",
    "no_geometry": "position, orientation or spacing is missing",
    "mixed_orientation": "the slices of one series face different ways",
    "not_hu": "the values are not Hounsfield units (no rescale, a derived map, or a minimum at or above -200)",
    "not_a_volume": "a two-dimensional image offered as a volume",
    "four_dimensional": "a time series or several channels; split it into volumes first",
    "detached_pixels": "the header has its pixels in a file that is not beside it, or names it by a path or pattern",
    "constant": "all values are equal (standard deviation below 1e-6)",
    "not_finite": "it holds NaN or infinite values",
    "mosaic_unsupported": "a Siemens mosaic whose tiles cannot be placed",
    "not_mri": "its modality is not MR",
    "not_ct": "its modality is not CT",
    # pathology
    "missing_mpp": "no physical resolution in the file: give --mpp-csv or --assume-mpp",
    "level_too_coarse": "no level is fine enough for the asked resolution; tiles are never enlarged beyond 1.2 times",
    "no_tissue": "no tile with enough tissue was found",
    "too_small": "smaller than one tile",
    "broken_tile": "some tiles could not be read",
    "out_of_focus": "all tiles drawn from it are blurred; --min-focus sets what counts as sharp",
    "raw_tiles": "an image of tile size without --tiles: pass --tiles if these are pre-cut tiles",
}
