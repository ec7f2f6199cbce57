"""Marks identifiers in kept text as `[DEID]`: dates, times, phone numbers, long numbers, titled names, known names.

What has no form (a bare name in prose) cannot be found this way; the documentation says so. Marks of earlier
de-identification (XXXX, ___, [** **]) become the same token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from medcoss.contracts import DEID_ID, SPECIAL_TOKENS

DEID = SPECIAL_TOKENS[DEID_ID]

_MONTH = (
    r"(?:[Jj]an(?:uary)?|JAN(?:UARY)?|[Ff]eb(?:ruary)?|FEB(?:RUARY)?|[Mm]ar(?:ch)?|MAR(?:CH)?|[Aa]pr(?:il)?|APR(?:IL)?"
    r"|May|MAY|[Jj]une?|JUNE?|[Jj]uly?|JULY?|[Aa]ug(?:ust)?|AUG(?:UST)?|[Ss]ept?(?:ember)?|SEPT?(?:EMBER)?"
    r"|[Oo]ct(?:ober)?|OCT(?:OBER)?|[Nn]ov(?:ember)?|NOV(?:EMBER)?|[Dd]ec(?:ember)?|DEC(?:EMBER)?)\.?"
)
_NAME = r"[A-Z][\w'’-]*"
# Each pattern is preceded by a cheaper one that must be found first: most text has nothing to mark, and these start
# with a set of characters, which is searched at many times the speed of a pattern that starts with a word boundary.
_RULES = tuple(
    (re.compile(guard), re.compile("|".join(patterns)))
    for guard, *patterns in (
        (r"\d{3}\)?[ .-]\d{3}[ .-]\d{4}|\d{3}-\d{2}-\d{4}",
         r"\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b|\b\d{3}-\d{2}-\d{4}\b"),
        (
            r"Jan|Feb|Mar|Apr|May|Ju[nl]|Aug|Sep|Oct|Nov|Dec|JAN|FEB|MAR|APR|MAY|JU[NL]|AUG|SEP|OCT|NOV|DEC"
            r"|january|february|march|april|june|july|august|september|october|november|december",
            rf"\b\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH}(?:,?[ -]\d{{2,4}})?\b",
            rf"\b{_MONTH}[ -]\d{{1,2}}(?:st|nd|rd|th)?(?:,?[ -]\d{{4}})?\b",
            rf"\b{_MONTH},?[ -](?:of )?(?:19|20)\d\d\b",
        ),
        (
            r"\d[-/]\d",
            r"\b(?:19|20)\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z?)?\b",
            r"\b\d{1,4}([-/])\d{1,2}\1\d{1,4}\b",
            r"\b(?:0?[1-9]|1[0-2])[-/](?:19|20)\d\d\b",
            r"(?<=\b[Oo]n )(?:0?[1-9]|1[0-2])/[0-3]?\d\b|(?<=\b[Dd]ated )(?:0?[1-9]|1[0-2])/[0-3]?\d\b",
            r"\b\d{3}-\d{4}\b",
        ),
        (r"\d\.\d{1,2}\.\d", r"\b\d{1,2}\.\d{1,2}\.(?:19|20)?\d\d\b"),
        (r"\d:[0-5]", r"\b[0-2]?\d:[0-5]\d(?::[0-5]\d)?(?: ?[AaPp]\.?[Mm]\b\.?)?"),
        (r"\d ?[AaPp]\.?[Mm]", r"\b[01]?\d ?[AaPp](?:\.[Mm]\.|[Mm]\b)"),
        (r"\d{4} h", r"\b[0-2]\d[0-5]\d (?:hours|hrs|h)\b"),
        (r"\+\d", r"\+\d{1,3}[ .-]?\(?\d[\d ().-]{5,}\d"),
        (r"[EePpTtBb](?:xt|ager|hone|el|eeper)",
         r"\b(?:[Ee]xt|[Ee]xtension|[Pp]ager|[Bb]eeper|[Pp]hone|[Tt]el)\.? ?[:#]? ?\d{3,}\b"),
        (r"\d{6}", r"\b[\w-]*\d{6,}[\w-]*"),
        (
            r"Dr|DR|Doctor|Prof|Mr|Ms|Miss",
            rf"\b(?:Drs?|DR|Doctors?|Prof(?:essor)?|Mr|Mrs|Ms|Miss)\b\.?\s+(?:[A-Z]\.\s*)*{_NAME}"
            rf"(?:\s+[A-Z]\.)*(?:\s+{_NAME}){{0,2}}",
        ),
        (
            r"M\. ?D\.|MD|D\.O\.|MBBS|PhD|Ph\.D|R\.N\.|PA-C",
            rf"\b{_NAME}(?:\s+(?:[A-Z]\.?|{_NAME})){{0,3}},?\s+"
            r"(?:M\.\s?D\.|MD\b|D\.O\.|MBBS\b|Ph\.?D\b\.?|R\.N\.|PA-C\b)",
        ),
    )
)  # fmt: skip
_WITHOUT_DIGITS = 2
"""The last rules, of titled names, are the only ones that a text without digits needs."""
_DIGIT = re.compile(r"\d")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_EARLIER = re.compile(r"\[\*\*.*?\*\*\]|X{4,}s?|\bXXX\b|_{2,}|\[(?:REDACTED|redacted|removed|NAME|DATE|ID)\]")
_RUN = re.compile(rf"{re.escape(DEID)}(?:[ ,]*{re.escape(DEID)})+")
_FAKE_TOKEN = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS if token != DEID))


def mark_earlier(text: str) -> str:
    """Make one token of marks that stand for something removed before, and take special tokens' spelling from text."""
    if "[" in text:
        text = _FAKE_TOKEN.sub(lambda match: match[0][1:-1], text)
    if "XXX" in text or "__" in text or "[" in text:
        text = _EARLIER.sub(DEID, text)
    return text


def deidentify(text: str, names: Iterable[str] = ()) -> str:
    """`text` with identifiers replaced by `[DEID]`, neighbouring ones merged; `names` go wherever they stand."""
    for name in names:
        # Names come as "DOE^JANE", "Doe, Jane" or "Jane Doe", and stand in text in any of these orders.
        for part in {name.strip(), *re.split(r"[\s,^]+", name)}:
            if len(part) > 1:
                text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", DEID, text, flags=re.IGNORECASE)
    if "@" in text:
        text = _MAIL.sub(DEID, text)
    for guard, pattern in _RULES if _DIGIT.search(text) else _RULES[-_WITHOUT_DIGITS:]:
        if guard.search(text):
            text = pattern.sub(DEID, text)
    return merge_marks(text)


def merge_marks(text: str) -> str:
    """Neighbouring marks as one."""
    return _RUN.sub(DEID, text) if DEID in text else text
