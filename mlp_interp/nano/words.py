"""The words that the generator chooses from.

Names, countries, nouns and adjectives that serve as answers are common enough to be
single tokens (after a space) in Pythia's tokenizer too, with few exceptions among cities.
"""

from __future__ import annotations

__all__ = [
    "ADJECTIVES",
    "ANTONYMS",
    "CITIES",
    "COLOURS",
    "COUNTRIES",
    "FEMALE",
    "FRENCH_WORDS",
    "LANDMARKS",
    "LANGUAGES",
    "MALE",
    "NAMES",
    "NOUNS",
    "NUMBERS",
    "OBJECTS",
    "PAST_TENSES",
    "PLACES",
    "plural",
]


def _table(text: str, sep: str | None = None) -> dict[str, str]:
    """Read ``"one/two three/four"``."""
    return {left: right for left, _, right in (pair.partition("/") for pair in text.split(sep))}


MALE = tuple(
    "John James Tom Dan Peter Paul David Mark Michael Robert George Henry Simon Martin "
    "Jack Sam Max Ben Adam Luke".split()
)
FEMALE = tuple(
    "Mary Sarah Anna Emma Lucy Kate Alice Laura Julia Rachel Maria Susan Jane Lisa Helen "
    "Claire Rose Grace Emily Amy".split()
)
NAMES = MALE + FEMALE

PLACES = tuple(
    "park school garden market station library shop house office church beach farm museum "
    "hospital hotel forest river kitchen village theatre".split()
)
OBJECTS = tuple(
    "book ball key drink ring letter hat cup map box bag coat camera phone watch picture "
    "basket knife lamp toy flower card".split()
)
COLOURS = tuple("red blue green yellow black white brown golden".split())
ADJECTIVES = tuple("big small old new little heavy beautiful strange".split())

# Nouns with a regular plural, for agreement and for plural lists.
NOUNS = tuple(
    "key book dog cat girl boy teacher doctor student car picture letter table chair flower "
    "tree house window door horse bird farmer king friend lamp ship stone cup player "
    "soldier".split()
)

NUMBERS = tuple(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty".split()
)

# Country -> capital.
COUNTRIES = _table(
    "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Russia/Moscow China/Beijing "
    "Japan/Tokyo England/London Greece/Athens Poland/Warsaw Portugal/Lisbon "
    "Sweden/Stockholm Norway/Oslo Finland/Helsinki Denmark/Copenhagen Hungary/Budapest "
    "Austria/Vienna Holland/Amsterdam Ireland/Dublin Egypt/Cairo Iran/Tehran "
    "Iraq/Baghdad Israel/Jerusalem Korea/Seoul Thailand/Bangkok Chile/Santiago "
    "Canada/Ottawa Belgium/Brussels Syria/Damascus Scotland/Edinburgh Turkey/Ankara "
    "Cuba/Havana Peru/Lima Ukraine/Kyiv Kenya/Nairobi Vietnam/Hanoi"
)

# Country -> language, where one language is the plain answer.
LANGUAGES = _table(
    "France/French Germany/German Italy/Italian Spain/Spanish Russia/Russian "
    "China/Chinese Japan/Japanese England/English Greece/Greek Poland/Polish "
    "Portugal/Portuguese Sweden/Swedish Norway/Norwegian Finland/Finnish "
    "Denmark/Danish Hungary/Hungarian Austria/German Holland/Dutch Egypt/Arabic "
    "Iran/Persian Iraq/Arabic Israel/Hebrew Korea/Korean Thailand/Thai Chile/Spanish "
    "Syria/Arabic Turkey/Turkish Cuba/Spanish Peru/Spanish Ukraine/Ukrainian "
    "Vietnam/Vietnamese Brazil/Portuguese Mexico/Spanish Australia/English"
)

# Landmark -> city; two words each, so that one can be exchanged for another.
LANDMARKS = _table(
    "Big Ben/London,Red Square/Moscow,White House/Washington,Opera House/Sydney,"
    "Western Wall/Jerusalem,Hyde Park/London,Charles Bridge/Prague,Grand Canal/Venice,"
    "British Museum/London,Eiffel Tower/Paris,Forbidden City/Beijing,Grand Palace/Bangkok,"
    "Chain Bridge/Budapest,Imperial Palace/Tokyo,Royal Castle/Warsaw,State Opera/Vienna,"
    "Blue Mosque/Istanbul,Spanish Steps/Rome,Egyptian Museum/Cairo,Lincoln Memorial/Washington",
    sep=",",
)
CITIES = tuple(sorted({*COUNTRIES.values(), *LANDMARKS.values()}))

# Each word stands in one pair only, so that every word has exactly one antonym.
ANTONYMS = tuple(
    _table(
        "hot/cold big/small good/bad happy/sad fast/slow up/down young/old rich/poor "
        "high/low long/short strong/weak wet/dry full/empty open/closed early/late "
        "true/false love/hate day/night black/white clean/dirty loud/quiet thick/thin "
        "near/far first/last in/out start/stop buy/sell win/lose deep/shallow wide/narrow "
        "heavy/light easy/difficult cheap/expensive safe/dangerous alive/dead sweet/sour "
        "kind/cruel inside/outside above/below before/after always/never more/less "
        "friend/enemy war/peace north/south east/west push/pull rise/fall smooth/rough "
        "king/queen summer/winter sun/moon"
    ).items()
)

# English -> French, one word each; many are antonym words too, so that only the list's
# other lines say which answer is wanted.
FRENCH_WORDS = _table(
    "hot/chaud cold/froid big/grand small/petit good/bon bad/mauvais happy/heureux "
    "sad/triste young/jeune old/vieux high/haut long/long strong/fort black/noir "
    "white/blanc day/jour night/nuit king/roi queen/reine sun/soleil moon/lune "
    "summer/été winter/hiver dog/chien cat/chat house/maison tree/arbre book/livre "
    "bird/oiseau door/porte friend/ami war/guerre peace/paix water/eau bread/pain"
)

PAST_TENSES = _table(
    "go/went see/saw take/took give/gave come/came find/found buy/bought sell/sold "
    "win/won lose/lost run/ran sing/sang write/wrote eat/ate drink/drank make/made "
    "begin/began break/broke speak/spoke bring/brought teach/taught fly/flew rise/rose "
    "fall/fell"
)


def plural(noun: str) -> str:
    """Return the plural of one of ``NOUNS``, all of which are regular."""
    return f"{noun}s"
