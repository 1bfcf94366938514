"""Columns that are named for languages: `en`, `zh-CN`, `fra_Latn`, or `fr` in `translation`."""

from __future__ import annotations

import re
from collections.abc import Mapping

# ISO 639-1
LANGUAGES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da "
    "de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy "
    "hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg "
    "li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or "
    "os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta "
    "te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
# ISO 639-2 and 639-3, of languages that are often translated
LONG = (
    "afr amh ara asm aze bel ben bod bos bul cat ceb ces cmn cym dan deu ell eng epo est eus fas "
    "fin fra gle glg guj hau heb hin hrv hun hye ibo ind isl ita jav jpn kan kat kaz khm kin kir "
    "kor kur lao lat lav lit ltz mal mar mkd mlt mon mri msa mya nep nld nno nob nor orm pan pol "
    "por pus ron rus sin slk slv som spa sqi srp swa swe tam tat tel tgk tha tir tuk tur uig ukr "
    "urd uzb vie wol xho yor yue zho zul chi cze dut fre ger gre per rum slo"
)
_CODES = {*LANGUAGES.split(), *LONG.split()}
_CODE = re.compile(r"([A-Za-z]{2,3})([-_][A-Za-z0-9]{2,4}){0,2}")


def is_language(name: str) -> bool:
    """Whether a name is the code of a language, perhaps with a script or a country."""
    found = _CODE.fullmatch(name)
    return bool(found and found.group(1).lower() in _CODES)


def languages_in(columns: Mapping[str, str]) -> list[str]:
    """The columns that are texts in languages, by their names, in their order: at least two; else
    none. A column `id` is not Indonesian, and `no` not Norwegian, unless they are in an object
    whose members are all languages."""
    objects: dict[str, list[str]] = {}
    for name in columns:
        parent, dot, member = name.rpartition(".")
        if dot:
            objects.setdefault(parent, []).append(member)
    for parent, members in objects.items():
        if len(members) > 1 and all(map(is_language, members)):
            return [f"{parent}.{member}" for member in members]
    flat = [
        name
        for name, kind in columns.items()
        if kind == "lines" or (kind in ("string", "null") and name not in ("id", "no"))
    ]
    found = [name for name in flat if is_language(name)]
    return found if len(found) > 1 else []
