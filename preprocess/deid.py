"""Marks identifiers in kept text as `[DEID]`: dates, times, phone numbers, long numbers, titled names, known names.

What has no form (a bare name in prose) cannot be found this way; the documentation says so. Marks of earlier
de-identification (XXXX, ___, [** **]) become the same token.

All quantifiers are bounded: text is foreign, and a pattern that looks far from every place takes hours on some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from medcoss.contracts import DEID_ID, SPECIAL_TOKENS

DEID = SPECIAL_TOKENS[DEID_ID]

_MONTH = (
    r"(?:[Jj]an(?:uary)?|JAN(?:UARY)?|[Ff]eb(?:ruary)?|FEB(?:RUARY)?|[Mm]ar(?:ch)?|MAR(?:CH)?|[Aa]pr(?:il)?|APR(?:IL)?"
    r"|May|MAY|[Jj]une?|JUNE?|[Jj]uly?|JULY?|[Aa]ug(?:ust)?|AUG(?:UST)?|[Ss]ept?(?:ember)?|SEPT?(?:EMBER)?"
    r"|[Oo]ct(?:ober)?|OCT(?:OBER)?|[Nn]ov(?:ember)?|NOV(?:EMBER)?|[Dd]ec(?:ember)?|DEC(?:EMBER)?"
    r"|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:(?:19|20)\d\d|'\d\d)"
_UNIT = (
    r"(?! ?(?:[mnpµ]g|m?[lL]|ms|cc|g|HU|k|[ckm]?m|I?U|mmol|Hz|rpm|k?cal|of|nodes?|lymph|positive|negative|views|weeks?"
    r"|strength|murmur|patients|cases)\b| ?%)"
)
# Words that follow a name, or stand where one would: they are none.
_NO_NAME = (
    r"(?!(?i:the|this|there|these|that|no|not|and|or|is|was|were|are|has|had|at|on|in|of|by|for|from|to|with|as|it|he"
    r"|she|we|they|who|will|also|then|findings?|impression|conclusion|heart|lungs?|chest|images?|imaging|normal|stable"
    r"|mild|moderate|severe|left|right|bilateral|interval|unchanged|compared|comparison|technique|indication|history"
    r"|patient|report|radiographs?|radiology|radiologist|system|please|recommend|discussed|aware|ct|mri?|us|pet|xr|cxr"
    r"|ecg|ekg|pa|ap|er|ed|icu|nicu|emergency|departments?|room|team|medicine|surgery|surgical|intensive|care|unit"
    r"|clinic|service|house|staff|primary|referring|ordering|nurse|nursing|oncology|cardiology|pulmonary|preliminary"
    r"|final|view|views|abdomen|pelvis|skull|spine|knee|hand|foot|shoulder|hip)\b)"
)
_CAPITALISED = r"[A-ZÀ-Þ][\w'’-]{0,30}"
_NAME = rf"{_NO_NAME}{_CAPITALISED}"
_TITLED = rf"(?!(?i:the|this|is|was|and|at|on|in|of|or|to|who|no)\b){_CAPITALISED}"
_GAP = r"[ \t]{0,3}\n?[ \t]{0,3}"
_SPACE = r"(?:[ \t]{1,3}|[ \t]{0,3}\n[ \t]{0,3})"
_TITLE = r"(?:Drs?|Doctors?|Prof(?:essor)?|Mr|Mrs|Ms|Miss|Nurse|Herrn?|Frau|Mme|Sra?)"
_VERB = (
    r"(?:[Ss]igned|[Dd]ictated|[Tt]ranscribed|[Aa]uthenticated|[Ff]inali[sz]ed|[Ii]nterpreted|[Rr]eported|[Rr]eviewed"
    r"|[Aa]pproved|[Vv]erified|[Rr]ead|SIGNED|DICTATED|TRANSCRIBED|INTERPRETED|REPORTED|REVIEWED|APPROVED|VERIFIED|READ)"
)
_TOLD = (
    r"(?:(?:[Dd]iscussed|[Cc]ommunicated|[Rr]eviewed|[Cc]onveyed|[Rr]elayed|[Rr]eported|[Tt]elephoned|[Cc]alled|[Gg]iven)"
    r"(?: \w{1,12}){0,3} (?:with|to|by)|[Ii]nformed|[Nn]otified|[Pp]aged)"
)
_IDENTIFIER = (
    r"(?:MRN|[Mm]rn|[Mm]edical [Rr]ecord|MEDICAL RECORD|[Aa]ccession|ACCESSION|[Aa]cc(?=[ #.:])|ACC(?=[ #.:])"
    r"|[Pp]atient (?:ID|[Ii]d|[Nn]o|[Nn]umber)|PATIENT (?:ID|NO|NUMBER)|[Cc]hart (?:[Nn]o|[Nn]umber|#)"
    r"|[Cc]ase (?:No\.|[Nn]umber|#)|SSN|DOB|[Ss]tudy (?:ID|[Nn]umber)|[Hh]ospital (?:[Nn]o|[Nn]umber)|ID(?=[:#]))"
)

_NEAR = 40
"""Characters before a number that tell what it is."""
_RATIO = re.compile(
    r"\b(?:ratio|titers?|titres?|dilut\w{0,8}|images?|series|im|se|slices?|scale|odds|dose)\b\W{0,3}(?:\w{1,12}\W{1,3}){0,2}$",
    re.IGNORECASE,
)
_DATED = re.compile(
    r"\b(?:on|dated|since|performed|compared (?:to|with)|(?:exam|examination|study|studies|films?|radiographs?|x-?rays?"
    r"|cxr|ct|mri|scan|ultrasound|prior|priors|images?|visit|report) (?:of|from|on|dated)) $",
    re.IGNORECASE,
)
_WHEN = re.compile(
    r"(?:\b(?:at|by|until|till|since|before|after|around|approximately|time|hours?|from)|@)\W{0,3}$", re.IGNORECASE
)


def _before(match: re.Match[str]) -> str:
    return match.string[max(match.start() - _NEAR, 0) : match.start()]


def _is_time(match: re.Match[str]) -> bool:
    """Whether hh:mm is a time and no ratio (1:32), titre or series and image (3:45)."""
    hour, seconds, half = match["hour"], match["seconds"], match["half"]
    if seconds or half:
        return True
    before = _before(match)
    if _RATIO.search(before):
        return False
    if len(hour) == 2 or _WHEN.search(before):
        return int(hour) < 24
    return hour not in "01" and not before.endswith("(")


def _is_date(match: re.Match[str]) -> bool:
    """Whether three numbers can be a year, a month and a day in one of the usual orders."""
    first, second, third = (int(match[name]) for name in ("a", "b", "c"))
    if len(match["a"]) == 4:
        return 1 <= second <= 12 and 1 <= third <= 31 and len(match["c"]) <= 2
    return (
        len(match["a"]) <= 2
        and len(match["c"]) in (2, 4)
        and 1 <= min(first, second) <= 12
        and max(first, second) <= 31
    )


def _is_day(match: re.Match[str]) -> bool:
    """Whether 3/14 is a month and a day: what stands before says so, for most fractions are none."""
    return _DATED.search(_before(match)) is not None


def _is_phone(match: re.Match[str]) -> bool:
    """Whether ddd-dddd is a number to call and no range of values, whose second is the larger one and round."""
    first, last = int(match["first"]), int(match["last"])
    return last <= first or last % 50 != 0


def _is_long(match: re.Match[str]) -> bool:
    return sum(map(str.isdigit, match[0])) >= 7


Check = Callable[[re.Match[str]], bool]


Rule = tuple[re.Pattern[str] | tuple[str, ...], re.Pattern[str], Check | None]


def _rule(guard: str | tuple[str, ...], *patterns: str, check: Check | None = None) -> Rule:
    """`guard` is a pattern, or pieces of text of which one must stand in the shape: looking for those takes least."""
    return guard if isinstance(guard, tuple) else re.compile(guard), re.compile("|".join(patterns)), check


def _shape(text: str) -> str:
    """The text with a zero for each digit."""
    return text.translate(_ZEROS) if text.isascii() else _DIGIT.sub("0", text)


def _guarded(guard: re.Pattern[str] | tuple[str, ...], shape: str) -> bool:
    if isinstance(guard, tuple):
        for piece in guard:  # noqa: SIM110 -- a generator takes longer than most searches
            if piece in shape:
                return True
        return False
    return guard.search(shape) is not None


_DIGIT = re.compile(r"\d")
_ZEROS = {ord(digit): "0" for digit in "123456789"}
# Each pattern is preceded by something cheaper that must be found first: most text has nothing to mark, and a piece of
# text is found at many times the speed of a pattern that starts with a word boundary.
_NUMBERS = (
    _rule(("0 0000", "0.0000", "0-0000"),
          r"(?<![\w.])\(?\d{3}\)?[ .-]{0,2}\d{3}[ .-]\d{4}\b", r"\b\d{3}-\d{2}-\d{4}\b"),
    _rule(
        r"[JFMASOND](?:an|eb|[aä]r|pr|a[yi]|u[nlg]|ep|[ck]t|ov|e[cz]|AN|EB|AR|PR|AY|U[NLG]|EP|CT|OV|EC)"
        r"|[ -](?:january|february|march|april|june|july|august|september|october|november|december)",
        rf"\b{_DAY}(?:[\s-]| of ){_MONTH}(?:,?[\s-]{_YEAR}|[\s-]\d\d)?(?!\w)",
        rf"\b\d{{1,2}}\. ?{_MONTH} (?:19|20)\d\d\b",
        rf"\b{_MONTH}[\s-]{_DAY}(?: ?(?:-|–|to|and) ?{_DAY})?(?:,?[\s-](?:19|20)\d\d|,? '\d\d)?(?!\w)",
        rf"\b{_MONTH},?[\s-](?:of )?{_YEAR}\b",
        rf"\b\d{{1,2}}{_MONTH}\d{{2,4}}\b",
    ),
    _rule(
        ("0-0", "0/0", "0.0"),
        r"(?<![\w.,/-])(?P<a>\d{1,4})(?P<mark>[-/.])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{4}|\d{1,2})"
        r"(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d{1,6})?Z?)?(?![\w/-]|\.\d)",
        check=_is_date,
    ),
    _rule(
        ("0-0", "0/0"),
        r"\b(?:0[1-9]|1[0-2])-(?:19|20)\d\d\b|\b(?:0?[1-9]|1[0-2])/(?:19|20)\d\d\b",
        rf"\b0[1-9]/[0-3]\d\b(?![/\d]){_UNIT}",
    ),
    _rule(("0-0", "0/0"), rf"(?<![\w.,/-])(?:0?[1-9]|1[0-2])[-/][0-3]?\d(?![\w/-]|\.\d){_UNIT}", check=_is_day),
    _rule(("000-0000",), r"(?<![\w.-])(?P<first>[2-9]\d\d)-(?P<last>\d{4})(?![\w-])" + _UNIT, check=_is_phone),
    _rule(
        ("0:0",),
        r"(?<![\d:.])(?P<hour>[0-2]?\d):[0-5]\d(?P<seconds>:[0-5]\d(?:\.\d{1,6})?)?"
        r"(?P<half> ?(?:[AaPp]\.?[Mm]\b\.?|[Hh](?:ou)?rs?\b|h\b|Uhr\b))?(?![\d:%])",
        check=_is_time,
    ),
    _rule(("0a", "0A", "0p", "0P", "0 a", "0 A", "0 p", "0 P"), r"\b[01]?\d ?[AaPp](?:\.[Mm]\.|[Mm]\b)"),
    _rule(("00 h", "t 0000"), r"\b[0-2]\d[0-5]\d (?:hours|hrs|h)\b",
          rf"(?<=\b[Aa]t )(?:0\d|1\d|2[0-3])[0-5]\d\b(?![.,]\d|[-/]){_UNIT}"),
    _rule(("+0",), r"\+\d{1,3}[ .-]?\(?\d[\d ().-]{5,20}\d"),
    _rule(("xt. ", "xt ", "xtension", "ager", "eeper", "hone", "el: ", "el. ", "ax: ", "ax ", "EXT", "PAGER", "PHONE",
           "TEL", "FAX"),
          r"\b(?:[Ee]xt|[Ee]xtension|[Pp]ager|[Bb]eeper|[Pp]hone|[Tt]el|[Ff]ax|EXT|PAGER|PHONE|TEL|FAX)\.?"
          r" ?(?:number )?[:#]? ?\d[\d-]{2,20}\b"),
    _rule(("MRN", "mrn", "ecord", "RECORD", "ccession", "CCESSION", "cc#", "cc:", "cc.", "cc #", "CC", "atient ID",
           "atient id", "atient Id", "atient no", "atient No", "atient nu", "atient Nu", "PATIENT", "hart n", "hart N",
           "hart #", "ase No.", "ase nu", "ase Nu", "ase #", "SSN", "DOB", "tudy ID", "tudy nu", "tudy Nu", "ospital n",
           "ospital N", "ID:", "ID#"),
          rf"\b{_IDENTIFIER}(?:[ .]{{0,2}}(?:[Nn]o|[Nn]umber|NO|NUMBER)\b)?[ .]{{0,2}}[:#]{{0,2}} ?#?"
          r"(?=[\w/-]{0,20}\d)[\w/-]{2,40}"),
    _rule(("00-000",), r"\b[A-Z]{1,4}-?\d{2}-\d{3,12}\b"),
    _rule(("0-00",), r"(?<![\w.-])\d{2,5}(?:-\d{2,6}){2,4}(?![\w-])", check=_is_long),
    _rule(r"\.\d{1,20}\.\d{1,20}\.\d", r"(?<![\w.])\d{1,20}(?:\.\d{1,20}){3,30}(?![\w.]\d)"),
    _rule(("000000",), r"[\w-]{0,40}\d{6,}[\w-]{0,40}"),
)  # fmt: skip
_WORDS = (
    _rule(
        ("Dr", "DR", "Doctor", "Prof", "Mr", "Ms", "Miss", "Nurse", "Herr", "Frau", "Mme", "Sr"),
        rf"\b(?:(?:{_TITLE}\b\.?|DRS?\.){_SPACE}|DR {_NO_NAME}|Dr\.(?=[A-Z]))(?:[A-Z]\.{_GAP}){{0,3}}{_TITLED}"
        rf"(?:\s[A-Z]\.)?(?:{_SPACE}{_NAME}){{0,2}}",
    ),
    _rule(("dr ", "dr. "), r"\bdr\.? (?!(?:is|was|has|and|at|on|the|to|for|by|who|of)\b)[a-z][a-z'’-]{1,30}\b"),
    _rule(
        ("M.", "MD", "D.O.", "MBBS", "PhD", "Ph.D", "R.N.", "PA-C", "FRCR", "DABR"),
        rf"\b{_NAME}(?:,?\s{{1,3}}(?:[A-Z]\.?(?!\w)|{_NAME})){{0,3}},?\s{{1,3}}"
        r"(?:M\.\s?D\.|MD\b|D\.O\.|MBBS\b|Ph\.?D\b\.?|R\.N\.|PA-C\b|FRCR\b|DABR\b)",
    ),
    _rule(
        (" by", " BY"),
        rf"(?P<keep>\b{_VERB}(?: (?:electronically|digitally|and \w{{3,12}}))? (?:by|BY):? {{0,2}})"
        rf"(?:[A-Z]\.\s?){{0,2}}{_NAME}(?:,?[ ](?:[A-Z]\.|{_NAME})){{0,3}}",
    ),
    _rule(
        r"(?:with|to|by|nformed|otified|aged) [A-Z]",
        rf"(?P<keep>\b{_TOLD} ){_NAME}(?<=[a-z]) (?:[A-Z]\. )?{_NAME}(?<=[a-z])",
    ),
)
_ALL = (*_NUMBERS, *_WORDS)
_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,5}")
_URL = re.compile(r"\b(?:https?://|www\.)[^\s<>\"')]{1,300}")
_EARLIER = re.compile(
    r"\[\*\*.{0,80}?\*\*\]|X{4,}s?|\bXXX\b|_{2,}|[\[<(](?:REDACTED|redacted|removed|REMOVED|NAME|DATE|ID|PHI|PERSON)[\])>]"
)
_RUN = re.compile(rf"{re.escape(DEID)}(?:[ ,]*{re.escape(DEID)})+")
# With all the brackets around it: of "[[SEP]]" less would leave a token.
_FAKE_TOKEN = re.compile(rf"\[+({'|'.join(token[1:-1] for token in SPECIAL_TOKENS if token != DEID)})\]+")
_PART = re.compile(r"[\s,^_.]+")
_COMMON = frozenset(
    """
    no do so an in to may will long short young old white black gray grey brown green small little large on as de la le
    van von der den di el al bin ben jr sr md mr mrs ms dr low high hand foot head back wood stone price day rose bone
    """.split()  # noqa: SIM905 -- as many words in quotes would be harder to read
)
"""Parts of names that are words of reports too: marked beside another part only."""
_NOBODY = {*("patient", "subject", "case", "control", "group", "site", "study", "unknown", "male", "female", "person")}
_PERSON = re.compile(r"[^\W\d_][\w'’.-]{0,30}(?:\^|, ?| )[^\W\d_][\w'’.-]{0,30}(?:[\^ ][\w'’.^-]{0,40})?")
_CAPITALS = r"(?:[A-Z][a-z]{2,20}|[A-Z]{3,20})"
_PATH_NAME = re.compile(rf"(?<![A-Za-z])({_CAPITALS})(?:_|, ?| |\^|-)({_CAPITALS})(?![A-Za-z])")


def mark_earlier(text: str) -> str:
    """Make one token of marks that stand for something removed before, and take special tokens' spelling from text."""
    if "[" in text:
        text = _FAKE_TOKEN.sub(r"\1", text)
    if "XXX" in text or "__" in text or "[" in text or "<" in text:
        text = _EARLIER.sub(DEID, text)
    return text


def names_in(subject: str) -> list[str]:
    """The subject's id if it has the form of a person's name ("DOE^JANE", "Doe, Jane", "Jane Doe")."""
    if _PERSON.fullmatch(subject) is None or _NOBODY & {*_PART.split(subject.lower())}:
        return []
    return [subject]


def name_in_path(relative: str) -> tuple[tuple[str, str], ...]:
    """Pairs of capitalised words side by side in a path, such as Doe_Jane: a name, or nothing that text would hold."""
    return tuple((one, two) for part in PurePosixPath(relative).parts for one, two in _PATH_NAME.findall(part))


def deidentify(text: str, names: Iterable[str] = (), pairs: Iterable[tuple[str, str]] = ()) -> str:
    """`text` with identifiers replaced by `[DEID]`, neighbouring ones merged.

    `names` go in all their parts wherever they stand, `pairs` only where both words stand side by side.
    """
    for name in names:
        text = _without_name(text, name)
    for one, two in pairs:
        if one.lower() in text.lower():
            text = re.sub(rf"\b(?:{one}[ ,]+{two}|{two}[ ,]+{one})\b", DEID, text, flags=re.IGNORECASE)
    if "@" in text:
        text = _MAIL.sub(DEID, text)
    if "http" in text or "www." in text:
        text = _URL.sub(DEID, text)
    shape = _shape(text)
    for guard, pattern, check in _ALL if "0" in shape else _WORDS:
        if _guarded(guard, shape):
            marked = pattern.sub(_mark if check is None else _marker(check), text)
            if marked != text:
                text, shape = marked, _shape(marked)
    return merge_marks(text)


def _mark(match: re.Match[str]) -> str:
    return (match["keep"] if "keep" in match.re.groupindex else "") + DEID


def _marker(check: Check) -> Callable[[re.Match[str]], str]:
    return lambda match: DEID if check(match) else match[0]


def _without_name(text: str, name: str) -> str:
    """Names come as "DOE^JANE", "Doe, Jane" or "Jane Doe", and stand in text in any of these orders."""
    lower = text.lower()
    found = [part for part in dict.fromkeys(_PART.split(name.strip())) if len(part) > 1 and part.lower() in lower]
    for part in found:
        if part.lower() not in _COMMON and len(part) > 2:
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", DEID, text, flags=re.IGNORECASE)
    for part in found:
        if part.lower() in _COMMON or len(part) <= 2:
            word = re.escape(part)
            beside = rf"(?<={re.escape(DEID)} )(?<!\w){word}(?!\w)|(?<!\w){word}(?=,? {re.escape(DEID)})"
            text = re.sub(beside, DEID, text, flags=re.IGNORECASE)
    if len(found) > 1:
        part = "(?:" + "|".join(re.escape(form) for part in found for form in (part.capitalize(), part.upper())) + ")"
        text = re.sub(rf"(?<!\w){part}(?:[ ,]+{part})+(?!\w)", DEID, text)
    return text


def merge_marks(text: str) -> str:
    """Neighbouring marks as one."""
    return _RUN.sub(DEID, text) if DEID in text else text
