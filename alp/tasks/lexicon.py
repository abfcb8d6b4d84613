"""Words of answers: functions, operators, units, numbers in words, and what no unit can be."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


FUNCTIONS = {
    name: name for name in _words("arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc exp log ln sqrt")
}
FUNCTIONS |= {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
TRIGONOMETRIC = {rf"\{name}" for name in _words("sin cos tan cot sec csc")}
GREEK = {
    *_words(
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau"
    ),
    *_words("upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar"),
}
# What leaves the work undone when it stands in an answer (docs/tasks.md).
OPERATOR_WORDS = _words("gcd lcm max min sup inf lim det mod floor ceil")

FACTORS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
BASE_NAMES = {name: number for number, name in enumerate(_words(_BASES), start=2)}
BASE_NAMES |= {"binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16}

UNIT_LETTERS = set("mgsNJWVAKCFHTLlh")  # single upright letters that are units behind a number
UNIT_SYMBOLS = {  # abbreviations, by letter case
    *_words(
        "cm mm km kg mg nm ft hr hrs min sec mol eV keV MeV GeV Hz kHz MHz Pa kPa mph Mpc kpc pc ly AU rad erg ergs"
    ),
    *_words("in yd mi lb lbs oz ml mL cL dL kL cc ms ns kN kJ MJ kW MW mA kV kph bps dB deg sq cu"),
}
_NAMES = {
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres kms",
    "h": "hour hours hr hrs",
    "min": "minute minutes mins",
    "s": "second seconds sec secs",
    "d": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "g": "gram grams",
    "kg": "kilogram kilograms kilo kilos kgs",
    "mg": "milligram milligrams",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "ton": "ton tons tonne tonnes",
    "L": "liter liters litre litres l",
    "ml": "milliliter milliliters millilitre millilitres mL cc",
    "gal": "gallon gallons",
    "K": "kelvin kelvins",
    "J": "joule joules",
    "N": "newton newtons",
    "W": "watt watts",
    "V": "volt volts",
    "A": "ampere amperes amp amps",
    "Hz": "hertz",
    "erg": "ergs",
    "rad": "radian radians rads",
    "°": "degree degrees deg degs",
    "cent": "cents",
    "dollar": "dollars usd bucks",
    "": "unit units",
}
UNITS = {short: short for short in (*_NAMES, *UNIT_SYMBOLS, *UNIT_LETTERS)} | {
    name: short for short, names in _NAMES.items() for name in names.split()
}
SPEEDS = {"mph": {"mi": 1, "h": -1}, "kph": {"km": 1, "h": -1}, "kmph": {"km": 1, "h": -1}, "fps": {"ft": 1, "s": -1}}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
IRREGULAR = set(_words("people men women children feet mice geese dice data teeth sheep fish pence"))
NO_PLURALS = {  # end in s like a plural, and change what the number in front of them says
    *_words(
        "is was has does as its this his always perhaps besides towards times plus minus less halves thirds quarters"
    ),
    *_words(
        "fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths doubles triples hundreds thousands"
    ),
    *_words("millions billions trillions dozens tens factorials squares cubes roots percents percentages reciprocals"),
    *_words("inverses negatives opposites logarithms powers exponents decimals"),
}
NO_ADJECTIVES = {
    *_words(
        "not no nor or and but if is are was were be than more less fewer over under above below about around almost"
    ),
    *_words(
        "nearly least most maybe perhaps possibly either neither minus plus times divided squared cubed factorial half"
    ),
    *_words(
        "third quarter double triple twice negative wrong false only until except without to from through between per"
    ),
    *_words("cent percent point mod modulo base root log sum product difference remainder hundred thousand million"),
    *_words("billion trillion dozen ten twenty thirty forty fifty"),
}
