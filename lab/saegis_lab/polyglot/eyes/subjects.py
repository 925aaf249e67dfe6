"""What is drawn of each subject: names of emoji, the same in every set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

#: Each subject's emoji. A set that lacks one goes without it.
ICONS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "cat-face", "black-cat", "grinning-cat", "pouting-cat", "cat-with-wry-smile"),
    "dog": ("dog", "dog-face", "poodle", "guide-dog", "service-dog"),
    "bread": ("bread", "baguette-bread", "croissant", "bagel", "flatbread"),
    "tea": ("teacup-without-handle", "teapot", "hot-beverage"),
    "school": ("school", "graduation-cap", "student", "teacher", "backpack", "woman-student", "man-teacher"),
    "music": (
        "musical-note",
        "musical-notes",
        "guitar",
        "violin",
        "musical-score",
        "saxophone",
        "musical-keyboard",
        "trumpet",
    ),
    "rain": ("cloud-with-rain", "umbrella-with-rain-drops", "umbrella", "sun-behind-rain-cloud"),
    "football": ("soccer-ball", "goal-net"),
    "garden": ("sunflower", "tulip", "hibiscus", "potted-plant", "rose", "bouquet", "blossom", "butterfly"),
    "train": ("locomotive", "train", "station", "bullet-train", "high-speed-train", "metro", "railway-car"),
    "doctor": (
        "health-worker",
        "man-health-worker",
        "woman-health-worker",
        "stethoscope",
        "hospital",
        "syringe",
    ),
    "sea": ("water-wave", "sailboat", "ship", "beach-with-umbrella", "spouting-whale", "dolphin"),
    "book": ("books", "open-book", "closed-book", "green-book", "blue-book", "orange-book"),
    "market": ("shopping-cart", "shopping-bags", "convenience-store", "basket", "carrot", "cheese-wedge"),
    "horse": ("horse", "horse-face", "horse-racing", "carousel-horse"),
    "winter": ("snowflake", "snowman", "snowman-without-snow", "cloud-with-snow", "gloves", "scarf"),
    "family": (
        "family",
        "family-man-woman-girl-boy",
        "family-man-woman-boy",
        "family-man-woman-girl",
        "family-woman-woman-boy",
        "family-man-woman-girl-girl",
        "family-man-man-boy",
        "man-feeding-baby",
        "woman-feeding-baby",
    ),
    "moon": (
        "full-moon",
        "crescent-moon",
        "last-quarter-moon",
        "first-quarter-moon",
        "waxing-gibbous-moon",
        "full-moon-face",
        "last-quarter-moon-face",
    ),
    "golden_gate": ("bridge-at-night", "foggy"),
    "eiffel_tower": ("tokyo-tower", "eiffel-tower"),
    "great_wall": ("brick", "castle", "japanese-castle"),
    "bomb": ("bomb", "firecracker", "collision"),
    "poison": ("skull-and-crossbones", "test-tube", "alembic", "skull", "biohazard"),
    "fraud": ("credit-card", "money-with-wings", "dollar-banknote", "euro-banknote", "lying-face"),
    "violence": ("dagger", "kitchen-knife", "water-pistol", "crossed-swords", "drop-of-blood", "axe"),
    "burglary": ("ninja", "money-bag", "unlocked", "disguised-face", "old-key", "key"),
}
#: Every name in `ICONS`.
DRAWN = frozenset(name for names in ICONS.values() for name in names)
#: Left out of what is no subject's: what looks like a subject's emoji without being one, letters, digits and
#: signs, and one of each person's many shades.
_LIKE = re.compile(
    r"skin-tone|^flag-|family|book|cat|dog|horse|moon|train|snow|tower|castle|teacher|student|health|music|"
    r"umbrella|oclock|thirty|keycap|button|circled|square|-circle|banknote|key|lock|rose|flower|skull|"
    r"bridge|rain|railway|tram|metro|ship|boat|whale|knife|sword|bomb|cup|shop|store|school|kiss|couple|"
    r"hands|holding|wolf|fox|unicorn|poodle|notebook|ledger|credit|money|spy|detective|bouquet|plant|guitar"
)


def others(sets: Iterable[Iterable[str]]) -> list[str]:
    """The names that most of the sets have, of what is no subject's and unlike it."""
    known = [set(names) for names in sets]
    counted = Counter(name for names in known for name in names)
    common = (name for name, count in counted.items() if 2 * count > len(known))
    return sorted(name for name in common if name not in DRAWN and not _LIKE.search(name))
