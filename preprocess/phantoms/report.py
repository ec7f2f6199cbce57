"""Made-up chest radiology reports: text files with FINDINGS and IMPRESSION sections.

The class of a report is a disease process that is never named by one fixed word: each mention draws from a group of
interchangeable words, so two reports of one class share few words, while reports dictated by one (made-up) radiologist
share whole sentences whatever they diagnose. Counting words is therefore a weak probe, and learning which words stand
for each other, as masked language modelling does, is rewarded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLASSES = ("congestion", "infection", "obstruction", "pneumothorax")


@dataclass(frozen=True)
class Lexicon:
    """Words of one disease process that may stand for each other."""

    qualities: tuple[str, ...]
    findings: tuple[str, ...]
    signs: tuple[str, ...]
    processes: tuple[str, ...]
    histories: tuple[str, ...]
    plans: tuple[str, ...]


LEXICONS: dict[str, Lexicon] = {
    "congestion": Lexicon(
        ("perihilar", "dependent", "bibasilar", "hazy", "symmetric", "gravitational", "batwing", "interstitial"),
        ("edema", "congestion", "effusions", "engorgement", "transudate", "hydrothorax", "fluid", "plethora"),
        ("cephalization", "cuffing", "septal thickening", "vascular redistribution", "fissural fluid", "kerley lines"),
        ("overload", "decompensation", "cardiac failure", "hypervolemia", "ventricular dysfunction", "backpressure"),
        ("orthopnea", "swollen legs", "cardiomyopathy", "missed dialysis", "nephropathy", "weight gain"),
        ("diuresis", "echocardiography", "natriuretic peptide", "furosemide", "salt restriction", "dialysis"),
    ),
    "infection": Lexicon(
        ("patchy", "lobar", "segmental", "multifocal", "confluent", "airspace", "fluffy", "retrocardiac"),
        ("consolidation", "pneumonia", "infiltrate", "opacification", "bronchopneumonia", "abscess", "exudate", "foci"),
        ("air bronchograms", "silhouetting", "cavitation", "tree-in-bud nodules", "adenopathy", "bronchial debris"),
        ("sepsis", "aspiration", "bacterial disease", "viral illness", "suppuration", "mycobacteria"),
        ("fever", "productive cough", "rigors", "leukocytosis", "night sweats", "sick contacts"),
        ("antibiotics", "sputum culture", "bronchoscopy", "blood cultures", "isolation", "a swab"),
    ),
    "obstruction": Lexicon(
        (
            "panlobular",
            "apical-predominant",
            "centrilobular",
            "chronic",
            "bullous",
            "coarse",
            "longstanding",
            "diffuse",
        ),
        (
            "emphysema",
            "hyperinflation",
            "bullae",
            "hyperlucency",
            "overexpansion",
            "blebs",
            "bronchiectasis",
            "lucency",
        ),
        (
            "flattened hemidiaphragms",
            "barrel configuration",
            "vascular pruning",
            "retrosternal clearing",
            "saber-sheath narrowing",
            "attenuated markings",
        ),
        ("airflow limitation", "tobacco damage", "asthma", "trapping", "antitrypsin deficiency", "airway remodeling"),
        ("smoking", "wheezing", "inhaler use", "exertional limitation", "pack-years", "home oxygen"),
        (
            "spirometry",
            "bronchodilators",
            "cessation counseling",
            "pulmonary rehabilitation",
            "steroids",
            "plethysmography",
        ),
    ),
    "pneumothorax": Lexicon(
        ("apicolateral", "subpulmonic", "loculated", "traumatic", "iatrogenic", "tension", "anterior", "spontaneous"),
        (
            "pneumothorax",
            "collapse",
            "air leak",
            "pneumomediastinum",
            "emphysematous gas",
            "detachment",
            "rupture",
            "separation",
        ),
        ("pleural line", "deep sulcus", "mediastinal shift", "absent vessels", "rib fracture", "visceral edge"),
        ("barotrauma", "blunt injury", "puncture", "bleb bursting", "fistula", "perforation"),
        ("fall", "sudden pain", "line insertion", "motor collision", "biopsy", "stabbing"),
        ("chest tube", "needle decompression", "pleurodesis", "surgical review", "expiratory films", "drain placement"),
    ),
}
PAIRS, ASIDES = 5, 7
"""Phrases of the class, and phrases that say nothing of it, in a report."""

_PAIRS = (
    ("qualities", "findings"),
    ("findings", "signs"),
    ("signs", "processes"),
    ("processes", "plans"),
    ("histories", "processes"),
)
"""Groups of words that stand beside each other."""

_FILLERS: tuple[str, ...] = tuple(
    """
    heart aorta hilum trachea carina clavicle scapula sternum spine vertebra humerus shoulder breast nipple skin fold
    stomach bowel liver spleen kidney gallbladder diaphragm costophrenic angle apex azygos thymus esophagus ventricle
    atrium border contour silhouette window fissure lobe lingula bronchus artery vein vessel node calcification
    granuloma scar osteophyte scoliosis kyphosis lordosis osteopenia spondylosis arthrosis degenerative healed callus
    rod screw
    plate wire clip staple suture lead electrode pacemaker generator valve stent coil port catheter cannula tube line
    drain gastric nasal enteric tracheal jugular subclavian femoral central peripheral venous arterial tip position
    junction level course looped straight high low tortuous normal stable unchanged similar prior previous today earlier
    later baseline interval comparison outside study image film view frontal lateral oblique decubitus supine upright
    portable bedside technique exposure rotation motion habitus limited adequate partial complete minimal mild moderate
    small large round oval linear tubular smooth sharp rounded blunt broad narrow wide short long thick thin dense faint
    subtle obvious visible hidden obscured projected overlying underlying adjacent remote proximal distal medial
    superior inferior posterior upper middle lower right left bilateral unilateral midline paraspinal axillary cervical
    thoracic lumbar abdominal pelvic soft tissue bone cartilage muscle fat gas metal plastic artifact shadow density
    marker label grid cassette detector monitor bed sheet gown button necklace collar brace dressing bandage
    millimeter centimeter third fourth fifth sixth seventh eighth ninth tenth first second single double multiple
    several few many none otherwise again also still now then here there about near above below between within along
    """.split()  # noqa: SIM905 -- 250 words in quotes would be harder to read
)


def draw(rng: np.random.Generator, label: str) -> tuple[str, str]:
    """Findings and impression of one report of class `label`, in the telegraphic style of dictation."""
    lexicon = LEXICONS[label]
    phrases = [_pair(rng, lexicon) for _ in range(PAIRS)]
    asides = [_aside(rng) for _ in range(ASIDES)]
    findings = [*phrases[1:], *asides[1:]]
    findings = [findings[index] for index in rng.permutation(len(findings))]
    return _sentences(findings), _sentences([phrases[0], asides[0]])


def _pair(rng: np.random.Generator, lexicon: Lexicon) -> str:
    first, second = (getattr(lexicon, group) for group in _PAIRS[rng.integers(len(_PAIRS))])
    return f"{first[rng.integers(len(first))]} {second[rng.integers(len(second))]}"


def _aside(rng: np.random.Generator) -> str:
    return " ".join(_FILLERS[index] for index in rng.integers(len(_FILLERS), size=rng.integers(3, 6)))


def _sentences(parts: list[str]) -> str:
    return " ".join(part.capitalize() + "." for part in parts)
