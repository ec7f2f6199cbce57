"""Sections of reports: which part of a text is the impression, which the findings, and what is neither."""

from __future__ import annotations

import re

_IMPRESSION = (
    r"(?:final |provisional |preliminary )?impressions?(?: and plan| ?/ ?plan)?|impression and recommendations?"
    r"|conclusions?|concl|opinion|summary|interpretation|assessment|(?:final |radiological )?diagnos[ie]s"
    r"|provisional findings impression(?: \(pfi\))?"
    # German, French, Spanish
    r"|beurteilung|zusammenfassung|conclusión|conclusiones|impresión(?: diagnóstica)?"
)
_FINDINGS = (
    r"findings?|findings? and impressions?|findings?/impressions?|results?|observations?|description|comments?"
    r"|body of report|report|befund(?:e|bericht)?|résultats?|compte[ -]rendu|hallazgos"
)
_ADDENDUM = r"(?:addend(?:um|a)|nachtrag)(?: (?:report|number|no\.?|# ?)?(?: ?\d+)?)?"
_OTHER = (
    r"examinations?|exams?|study|procedures?|indications?|(?:clinical |relevant )?(?:history|information|indications?"
    r"|data|details|statement)|clinical(?: (?:context|diagnosis|background))?|reason for (?:the )?(?:exam|examination"
    r"|study|this examination|request)|(?:imaging )?techniques?|comparisons?|(?:number of )?views?|contrast|dose"
    r"|radiation dose|protocol|(?:final|preliminary|radiology|wet|provisional) (?:report|read)|wet reading|signature"
    r"|notifications?|recommendations?(?: \(if any\))?|communications?|attestation|note|clinical question|medications?"
    r"|(?:type of )?examination type|exam type|department|institution|technik|fragestellung|klinische angaben"
    r"|indikation|methodik|anamnese|antécédents|técnica|indicación|datos clínicos"
)
_PERSONAL = (
    r"patient|name|mrn|dob|birth|accession|physician|radiologist|doctor|dictated|signed|transcribed|approved|verified"
    r"|date|time|phone|fax|pager|address|ssn|provider|attending|resident|technologist|sex|gender|age|ordering|referring"
    r"|hospital|ward|insurance|geburtsdatum|fallnummer|nombre|nom"
)
_KNOWN = re.compile(
    rf"^[ \t]*[*#_]{{0,3}}(?:(?P<impression>{_IMPRESSION})|(?P<findings>{_FINDINGS})|(?P<addendum>{_ADDENDUM})"
    rf"|(?P<other>{_OTHER}))[*#_]{{0,3}}[ \t]*(?P<end>:[*_]{{0,2}}|-[ \t]|\.?[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER = re.compile(r"^[ \t]*(?P<name>[A-Za-z][A-Za-z /&,.()'-]{1,50}?)[ \t]*:", re.MULTILINE)
_PERSONAL_NAME = re.compile(rf"\b(?:{_PERSONAL})\b", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"^[ \t]*(?:electronically |digitally )?"
    r"(?:signed|dictated|approved|verified|transcribed|reviewed|read|reported|interpreted|authenticated|finalized"
    r"|released)[ \t](?:and \w+ )?by\b",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE = re.compile(
    r"(?<=[\s.;])(?=(?:IMPRESSIONS?|FINDINGS?|CONCLUSIONS?|INDICATIONS?|TECHNIQUE|COMPARISONS?|(?:CLINICAL )?HISTORY"
    r"|EXAMINATION|ADDENDUM|RECOMMENDATIONS?|PROCEDURE|REASON FOR EXAM(?:INATION)?|NOTIFICATION)[ \t]?:)"
)
_OF_REPORTS = re.compile(r"^[ \t]*(?:FINAL )?(?:IMPRESSIONS?|FINDINGS?)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"[a-z]{2,}")
_TERMS = frozenset(
    """
    effusion effusions pneumothorax consolidation consolidations opacity opacities opacification infiltrate infiltrates
    atelectasis cardiomegaly cardiac mediastinum mediastinal hilar hilum silhouette costophrenic pulmonary pleural
    lung lungs lobe diaphragm edema nodule nodules lesion lesions mass masses fracture fractures dislocation
    degenerative osteophyte osteophytes stenosis herniation disc vertebral spine hemorrhage haemorrhage infarct
    ventricles hydrocephalus enhancement hypodense hyperdense hyperintense hypointense echogenic thrombus aneurysm
    lymphadenopathy calcification calcifications unremarkable radiograph radiographs sonographic acute interval
    catheter tube heart aorta aortic liver spleen kidneys renal gallbladder pancreas bowel hydronephrosis ascites
    """.split()  # noqa: SIM905 -- as many words in quotes would be harder to read
)
_NO_PROSE = re.compile(r"https?://|^#{1,6} |^```|^\s*(?:import|def|class|from) \w+|[{}<>]|(?:^|\s)--\w", re.MULTILINE)
_FEWEST_TERMS = 3
_TERM_SHARE = 0.06

Mark = tuple[int, int, str]


def sections(text: str) -> tuple[str, str] | None:
    """(impression, findings) of a report; addenda follow the impression. None if it does not look like a report.

    Without either section the last paragraph counts as the impression, as in the usual extraction from MIMIC-CXR: in a
    text with some other header of reports, or in prose that uses a radiologist's words (`is_prose_of_a_report`).
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    marks = _marks(text)
    impression, findings = _parts(text, marks) if marks else ("", "")
    if impression or findings:
        return impression, findings
    if not marks and not is_prose_of_a_report(text):
        return None
    return _last_paragraph(text, marks), ""


def cell_sections(text: str) -> tuple[str, str] | None:
    """(impression, findings) of a table's cell that holds a whole report, None for any other text.

    Only headers that nothing but reports have are taken for a sign of one: an abstract's METHODS must not be dropped.
    Cells whose line breaks were lost have their headers, in capitals, within a line.
    """
    if ":" not in text:
        return None
    if "\n" not in text and "\r" not in text:
        text = _INLINE.sub("\n", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _OF_REPORTS.search(text) is None:
        return None
    impression, findings = _parts(text, _marks(text))
    return (impression, findings) if impression or findings else None


def is_prose_of_a_report(text: str) -> bool:
    """Whether a text without any header reads like a report: three different words for findings and organs, which are
    6 % of all its words, and nothing that stands in code, web pages or documentation.
    """
    if _NO_PROSE.search(text):
        return False
    words = _WORD.findall(text.lower())
    terms = [word for word in words if word in _TERMS]
    return len(set(terms)) >= _FEWEST_TERMS and len(terms) >= _TERM_SHARE * len(words)


def _marks(text: str) -> list[Mark]:
    """(start, end, kind) of all headers; empty if none is one of a report."""
    marks = [(match.start(), match.end(), _kind(match)) for match in _KNOWN.finditer(text) if _stands_out(match)]
    if not marks:
        return []
    known = {start for start, _, _ in marks}
    marks += [
        (match.start(), match.end(), "other")
        for match in _HEADER.finditer(text)
        if match.start() not in known and _PERSONAL_NAME.search(match["name"])
    ]
    marks += [(match.start(), match.end(), "other") for match in _SIGNATURE.finditer(text)]
    return sorted(marks)


def _kind(match: re.Match[str]) -> str:
    return next(kind for kind in ("impression", "findings", "addendum", "other") if match[kind] is not None)


def _stands_out(match: re.Match[str]) -> bool:
    """Whether a header without a colon is one: capitalised or below an empty line; else a wrapped sentence ends so."""
    if match["end"].startswith((":", "-")):
        return True
    before = match.string[max(match.start() - 200, 0) : match.start()].split("\n")
    below_empty = len(before) < 2 or not before[-2].strip()
    return "." not in match[0] and (below_empty or match[0].strip(" \t*#_")[0].isupper())


def _parts(text: str, marks: list[Mark]) -> tuple[str, str]:
    found: dict[str, list[str]] = {"impression": [], "findings": [], "addendum": []}
    for (_, start, name), end in zip(marks, [start for start, _, _ in marks[1:]] + [len(text)], strict=True):
        if name in found and text[start:end].strip():
            found[name].append(text[start:end].strip())
    return _joined(found["impression"] + found["addendum"]), _joined(found["findings"])


def _joined(parts: list[str]) -> str:
    """Parts of several sections as one text; no sentence runs from one into the next."""
    return "\n".join(part if part[-1] in ".!?" or part is parts[-1] else part + "." for part in parts)


def _last_paragraph(text: str, marks: list[Mark]) -> str:
    """The last paragraph that holds no header, for reports that dictate on without naming sections."""
    heads = [start for start, _, _ in marks]
    place = len(text)
    for paragraph in reversed(re.split(r"\n[ \t]*\n", text)):
        place = text.rfind(paragraph, 0, place)
        if paragraph.strip() and not any(place <= head < place + len(paragraph) for head in heads):
            return paragraph.strip()
    # All in one paragraph, below a title.
    title = max(
        (end for start, end, _ in marks if text[start:end].rstrip(" :\t").lower().endswith("report")), default=0
    )
    return text[title : min((head for head in heads if head > title), default=len(text))].strip() if title else ""
