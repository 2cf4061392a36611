"""What a series calls itself: FLAIR by its many spellings, or something else that only sounds like it.

Texts are folded first (Unicode NFKC, lower case, accents and punctuation removed, CamelCase split), so that
"T2_FLAIR", "T2-Flair", "t2flair" and "ＦＬＡＩＲ" read alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

FLAIR_NAMES = re.compile(
    r"""
      flair | fla\ ir\b | \bfl\ air\b | \bflr\b | t2flr | \bflare\b | \bfalir\b | \bflari\b | \bfliar\b | \bflaier\b
    | \bflai\ r\b | \bf\ l\ a\ i\ r\b
    | dark\ ?fl(?:uid|d)?\b | \bda\ fl\b | \bdafl\b | \bdark\ fluid | darkfluid | \bdk\ ?fl | dunkle\ flussigkeit
    | fluid\ ?(?:att|suppress|null) | attenuated\ fluid | \bcsf\ (?:suppress|null|attenuat)
    | (?:liquor|lcr|csf|liquido|liquide|vloeistof)\ ?(?:unterdruck|supprim|suppress|supres|soppress|atenuad|attenu)
    | (?:supresion|atenuacion|suppression|attenuation|soppressione|attenuazione|supressao|atenuacao)
      \ (?:de\ |del\ |du\ |di\ |do\ |des\ |della\ )?(?:l\ |lo\ )?(?:liquid|fluid|lcr|liquor|csf)
    | подавл\w*\ (?:\w+\ )?(?:ликвор|жидкост|вод)
    | флэир | флаир | флеир
    | フレア | フレアー | 水抑制 | 플레어 | 液体衰减 | 液体抑制 | 流体衰减 | 液体反转恢复 | 液衰 | 액체감쇠 | 水抑
    | 压水 | 壓水 | 抑水 | 黑水
    | فلير | فلاير | فلیر | فلر | פלייר | פלאייר
    """,
    re.VERBOSE,
)
"""Names that mean fluid-attenuated inversion recovery and nothing else."""

_PREFIX = r"(?<![a-z0-9])(?:ax|axial|tra|trans|sag|cor|obl|3d|2d|fs|ir|se|tse|fse|spc|wip|flair|fl|fluid)?"

OTHER_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "T1 weighting",
            _PREFIX
            + r"t1(?![0-9])|\bt 1\b|т1(?![0-9])|\bmprage\b|\bmp ?2 ?rage\b|\bbravo\b|\bfspgr\b|\bflaws\b|\bfgatir\b",
        ),
        (
            "double inversion recovery",
            r"(?<![a-z])(?:3d|2d|t2|spc|ax|sag|cor|tra)?dir(?![a-z])|double ?(?:ir\b|inv)|doppel ?(?:ir\b|inv)"
            r"|dual (?:ir\b|inv)|doppelte inv|doble inv|doppia inv|dubbele inv|двойн",
        ),
        ("phase-sensitive inversion recovery", r"\bpsir|phase sensitive"),
        ("STIR", r"(?<![a-z])(?:ax|sag|cor|tra|t2|3d|2d|fs)?stir|short (?:tau|ti)\b|\btirm? fatsat\b"),
        (
            "diffusion",
            r"dwi\b|\bdwi|\bdiff(?!use\b)|\bdti\b|\bdki\b|\badc\b|apparent diff|\btrace ?w?\b|\bb ?1000\b|\bivim\b"
            r"|(?<!deep )\bresolve\b|\bb ?0\b|\bep b ?\d|дифф|диффуз|弥散|扩散|拡散",
        ),
        (
            "susceptibility",
            r"\bswi(?!ft)|\bswan\b|\bswip|\bt2 ?star|t2\*|\bhemo\b|\bgre\b|\bmedic\b|\bqsm\b|\bvenobold\b",
        ),
        ("angiography", r"\bmra\b|\bmrv\b|\btof\b|angio|\bvenogr|\bpca\b|\bcow\b|\bfl3d\b"),
        (
            "perfusion",
            r"\bperf|\bpwi\b|\bdsc\b|\bdce\b|\basl\b|\bpasl\b|\bpcasl\b|\bcbf\b|\bcbv\b|\bmtt\b|\btmax\b|\bttp\b",
        ),
        ("functional imaging", r"\bfmri\b|\bbold\b|\bresting"),
        ("spectroscopy", r"\bmrs\b|spectro|\bcsi\b|\bsvs\b|\bpress\b"),
        (
            "localizer",
            r"\bloc\b|locali[sz]|\bscout|\bsurvey\b|\bplan scan\b|\bpilot\b|\b3 ?plane?\b|\btopogram|\bcalib|\bcal\b"
            r"|\bprescan\b(?! ?norm)|\basset cal|\bshim\b|\bcoil (?:sens|ref)|\breference scan\b|\bsense ref"
            r"|\bsmartbrain\b",
        ),
        (
            "chemical exchange or magnetization transfer",
            r"\bcest\b|\bapt ?w?\b|\bih ?mt\b|\bmt[cr]\b|\bmagneti[sz]ation transfer",
        ),
        (
            "derived image",
            r"mpr\b|reformat|\brfmt\b|\breform\b|mip\b|\bm(?:in|ax|ean) ?ip\b|\bprojection|\bsub(?![ -]?\d)\b|subtr"
            r"|\bminus\b"
            r"|\bfus(?:ion|ed)\b|overlay|\bscreen ?(?:sav|shot|cap|grab)|\bsnapshot\b|\bcapture\b"
            r"|\bmap\b|\bmaps\b|\bcolou?r|\bsegm|\bseg\b|\bmask\b|\bregister|\bcoreg"
            r"|\breg to\b|\bratio\b|\bprocessed\b|\bpostproc|\bsynth|\bsy ?mri\b|\bmagic\b"
            r"|\bvrt\b"
            r"|\brendering\b|\breport\b|\bresult|\bsummary\b|\bflair ?star\b|flair\*"
            r"|(?<!\bair )\brecon\b(?! dl)|(?<!learning )\breconst\w*|\bmagi c\b|\bm ip\b|\bpost pre\b"
            r"|\bsyn ?flair|\bsyn\b|\bqrapmaster|\bmdme\b"
            r"|\bmapping\b|(?<!prescan )\bnormali[sz]ed|\bbias ?corr|\bskull ?strip|\bbrain ?extract|\bresampl|\bvr\b"
            r"|\baveraged\b|\bmean\b|\bcombined\b|\breg (?:t2 )?flair|\bimag(?:inary)?\b|\breal\b"
            r"|\bneuro ?quant|\blesion ?quant|\bico ?brain|\bquantib|\bqy ?score|\bcad\b|\bprobabilit|\bheat ?map"
            r"|\bphase (?:image|map|contrast|diff)"
            r"|(?<!swap )(?<!no )\bphase$",
        ),
    )
)
"""(kind, pattern): names that say that the series is not a FLAIR, or no acquired one, even beside the word FLAIR."""

OTHER_BODY_PARTS = re.compile(
    r"spine\b|\bspinal|\bcspine|\btspine|\blspine|\bc sp\b|\bl sp\b|\blumbar|\blumb|\bcervical|\bthora|\bdorsal\b"
    r"|\bmyelo|\bwirbel|\bhws\b|\bbws\b|\blws\b|\bcolumna|\brachis|\bcolonna\b|\bneck\b|\bhals\b|\bcarotid|\bknee|\bshoulder"
    r"|\bhip\b|\bhips\b|\bankle|\bwrist|\belbow|\bhand\b|\bfoot\b|\bfeet\b|\bpelvi|\bprostat|\babdom|\bliver\b|\bkidney|\brenal"
    r"|\bcardi|\bheart\b|\bchest\b|\bbreast|\bmamm|\buter|\bextrem|\bleg\b|\barm\b|\btmj\b|\borbit|\biac\b|\biam\b"
    r"|\binner ear|\bpituit|\bsella|\bhypophys|\bfetal|\bfoet|\bphantom\b|\bwhole ?body|позвоноч|пояснич|шеин"
    r"|頚椎|腰椎|脊椎|颈椎|脊柱"
)
"""Words for what is not a whole brain."""

UNSAID_PARTS = re.compile(r"(?:un(?:known|specified|defined)|others?|default|none|n ?a|any|general|mri?|standard)")
"""Values of BodyPartExamined that say nothing."""

BRAIN_PARTS = re.compile(
    r"brain|head|skull|neuro|crani|cereb|enceph|encef|kopf|schadel|hirn|tete|crane|cabeza|cabeca|testa|hoofd|huvud|glowa|mozg"
    r"|голов|мозг|череп|頭|脳|头|脑|颅|머리|뇌|رأس|دماغ|مخ"
)
"""Values of BodyPartExamined and the like that mean the head."""


@dataclass(frozen=True)
class Name:
    """What the descriptions of a series say.

    Attributes:
        flair: The words that mean FLAIR; empty where there are none.
        others: What else the words mean, as `kind ("word")`.
    """

    flair: str
    others: tuple[str, ...]


def fold(text: str) -> str:
    """Lower case without accents, punctuation as spaces; letters of other scripts are kept."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text))
    decomposed = unicodedata.normalize("NFKD", split.lower().replace("ß", "ss"))
    plain = unicodedata.normalize("NFC", "".join(c for c in decomposed if not _is_latin_accent(c)))
    return re.sub(r"[^\w*+]+|_+", " ", plain).strip()


def _is_latin_accent(character: str) -> bool:
    return "\u0300" <= character <= "\u036f"


def read_name(texts: Iterable[str]) -> Name:
    """Judge descriptions.

    Args:
        texts: Such as SeriesDescription and ProtocolName.
    """
    folded = [fold(t) for t in texts if t]
    others = []
    for kind, pattern in OTHER_NAMES:
        found = next((m for t in folded if (m := pattern.search(t))), None)
        if found:
            others.append(f'{kind} ("{found.group().strip()}")')
    return Name(
        flair=next((m.group().strip() for t in folded if (m := FLAIR_NAMES.search(t))), ""),
        others=tuple(others),
    )
