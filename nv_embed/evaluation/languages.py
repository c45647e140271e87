"""
Languages by their codes of two letters, as folders of parallel collections are called by them.
"""

SNOWBALL = {
    "ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish", "eu": "basque", "fi": "finnish",
    "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian", "lt": "lithuanian",
    "ne": "nepali", "nl": "dutch", "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish",
    "ta": "tamil", "tr": "turkish",
}  # fmt: skip
"""What Snowball calls those that it has a stemmer for, and Postgres its text search configurations."""

UNSTEMMED = {
    "bg", "bn", "cs", "et", "fa", "he", "hr", "ja", "ka", "kk", "km", "ko", "lo", "lv", "mk", "ml", "ms", "my", "pl", "sk", "sl", "sq", "sw", "te",
    "th", "tl", "uk", "ur", "uz", "vi", "yo", "zh",
}  # fmt: skip
"""Others that collections are in."""

DEFAULT = "en"


def is_language(name: str) -> bool:
    return name in SNOWBALL or name in UNSTEMMED
