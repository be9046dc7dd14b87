"""Names of languages, as instructions say them."""

from t5x_lite.errors import UserError, nearest


def name_of(language: str) -> str:
    """The English name of a language that is given by its code ('de') or by that name, by CLDR.

    Raises UserError for what is neither.
    """
    from babel import Locale

    names = {code.lower(): name for code, name in Locale("en").languages.items()}
    code = language.lower().replace("-", "_")  # Babel has pt_BR for what the web calls pt-BR
    if code in names:
        return names[code]
    by_name = {name.lower(): name for name in names.values()}
    if language.lower() in by_name:
        return by_name[language.lower()]
    close = nearest(language.title(), by_name.values()) or nearest(code, names)
    raise UserError(f"target_language {language!r} is no language{close}; give a code, like 'de', or a name")
