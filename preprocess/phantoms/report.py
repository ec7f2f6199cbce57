"""Made-up chest radiology reports: text files with FINDINGS and IMPRESSION sections.

The class of a report is a disease process that is never named by one fixed word: each mention draws from a group of
interchangeable words, so two reports of one class share few of them, while most words of a report say nothing of its
class. Comparing words is therefore a weak probe, and learning which words stand for each other, as masked language
modelling does, is rewarded.
"""

from __future__ import annotations

import numpy as np

CLASSES = ("congestion", "infection", "obstruction", "pneumothorax")

MENTIONS, ASIDES = 10, 20
"""Words of the disease process, and words of no consequence, in a report."""

_SENTENCE = (4, 9)
"""Fewest and most words of a sentence."""

LEXICONS: dict[str, tuple[str, ...]] = {
    # Loosely of one subject each; that a word keeps company with its group is all that matters here.
    "congestion": tuple(
        """
        edema flooding effusion engorgement transudate hydrothorax fluid plethora perihilar dependent bibasilar hazy
        gravitational batwing interstitial cephalization cuffing septal redistribution fissural kerley overload
        decompensation cardiogenic hypervolemia cardiomegaly backpressure orthopnea swollen cardiomyopathy dialysis
        nephropathy anasarca diuresis echocardiography natriuretic furosemide salt ultrafiltration infarction ischemia
        mitral aortic regurgitation stenosis fibrillation hypertension ventricular atrial layering pericardial veiling
        meniscus weeping oliguria azotemia ascites crackles gallop distended pulsatile wet moist tamponade
        """.split()  # noqa: SIM905 -- as many words in quotes would be harder to read
    ),
    "infection": tuple(
        """
        consolidation pneumonia infiltrate bronchopneumonia abscess exudate patchy lobar segmental multifocal confluent
        airspace fluffy bronchogram silhouetting cavitation budding adenopathy debris sepsis aspiration bacterial viral
        suppuration mycobacteria fever cough rigors leukocytosis sweats contagious antibiotics sputum bronchoscopy
        cultures isolation swab empyema purulent fungal aspergillus tuberculosis influenza klebsiella legionella
        pneumococcus staphylococcus rhonchi egophony malaise myalgia chills pleurisy necrotizing caseating vaccination
        ceftriaxone doxycycline oseltamivir procalcitonin inflammatory septic bacteremia quarantine
        """.split()  # noqa: SIM905
    ),
    "obstruction": tuple(
        """
        emphysema hyperinflation bullae hyperlucency overexpansion blebs bronchiectasis panlobular centrilobular
        paraseptal bullous flattened barrel pruning retrosternal attenuated airflow tobacco asthma trapping antitrypsin
        remodeling smoking wheezing inhaler exertional packs oxygen spirometry bronchodilator cessation rehabilitation
        steroids plethysmography bronchitis chronic mucus plugging hypercapnia cyanosis pursed clubbing hypoxemia
        tiotropium albuterol theophylline budesonide exacerbation eosinophilia atopy allergic tracheomegaly saber sheath
        cachexia polycythemia eggshell dust silica mosaic expiratory hyperresonant accessory ventilatory
        """.split()  # noqa: SIM905
    ),
    "pneumothorax": tuple(
        """
        deflation collapse leak pneumomediastinum detachment rupture separation apicolateral subpulmonic loculated
        traumatic iatrogenic tension spontaneous edge sulcus shift avascular fracture visceral barotrauma blunt
        puncture bursting fistula perforation fall sudden insertion collision biopsy stabbing thoracostomy
        decompression pleurodesis surgical expiration pigtail hemothorax contusion laceration flail crepitus
        subcutaneous emphysematous assault gunshot seatbelt airbag diving scuba marfan catamenial thoracentesis
        lobectomy stapling suction waterseal reexpansion deviated dropped crushed displaced penetrating
        """.split()  # noqa: SIM905
    ),
}

_FILLERS = tuple(
    """
    heart aorta hilum trachea carina clavicle scapula sternum spine vertebra humerus shoulder breast nipple skin fold
    stomach bowel liver spleen kidney gallbladder diaphragm apex azygos thymus esophagus border contour silhouette
    window fissure lobe lingula artery vein vessel node calcification granuloma scar osteophyte scoliosis kyphosis
    peripheral tip position junction level course looped straight high low tortuous normal stable unchanged similar
    """.split()  # noqa: SIM905
)


def draw(rng: np.random.Generator, label: str) -> tuple[str, str]:
    """Findings and impression of one report of class `label`, in the telegraphic style of dictation."""
    words = [_one(rng, LEXICONS[label]) for _ in range(MENTIONS)] + [_one(rng, _FILLERS) for _ in range(ASIDES)]
    words = [words[index] for index in rng.permutation(len(words))]
    sentences = []
    while words:
        length = int(rng.integers(_SENTENCE[0], _SENTENCE[1] + 1))
        sentences.append(" ".join(words[:length]).capitalize() + ".")
        words = words[length:]
    return " ".join(sentences[1:]), sentences[0]


def _one(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]
