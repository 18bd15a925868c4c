"""The stories behind the generated word problems: each a sentence with letters for its numbers, and its steps.

A template writes its numbers as `{a}` to `{d}`; a step is one operation on those letters, on constants that the
story implies (a week's 7 days) and on earlier results, which are called `x` (first step), `y` and `z`. Numbers are
always at least two, so that nouns after them stay plural. Texts are short on purpose: every token of a question
costs training time, and small models spell numbers digit by digit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# fmt: off
NAMES = ("Anna", "Ben", "Carl", "Dana", "Emma", "Frank", "Grace", "Henry", "Jack", "Kate", "Liam", "Mary", "Nick",
         "Paul", "Rose", "Sam", "Tom", "Will")
# fmt: on


@dataclass(frozen=True, eq=False)  # one object a story: compared and hashed by identity
class Template:
    """A story with open numbers.

    Attributes:
        id: Name, unique among all templates.
        story: The question; `{name}`, `{other}` are two different people, other words come from `words`.
        steps: Operations such as `"a*b"`, `"x+c"`; the value of the last one is the answer.
        ranges: For each letter its smallest and largest value (both included).
        words: For each further placeholder the words it may stand for.
        test_only: Whether the story is kept for the test set alone.
    """

    id: str
    story: str
    steps: Sequence[str]
    ranges: Mapping[str, tuple[int, int]]
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    test_only: bool = False


# fmt: off
def _template(id: str, story: str, steps: str, words: Mapping[str, str] | None = None, test_only: bool = False,
              **ranges: tuple[int, int]) -> Template:
    choices = {key: tuple(text.split()) for key, text in (words or {}).items()}
    return Template(id, story, tuple(steps.split()), ranges, choices, test_only)
# fmt: on


_THINGS = "marbles stickers shells coins cards stamps"
_SWEETS = "cookies sweets nuts grapes plums"
_FRUIT = "apples pears plums oranges lemons peaches"
_GOODS = "pens books mugs caps toys bowls"

# fmt: off
_ONE_STEP = (
    _template("gift", "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", "a+b",
              {"thing": _THINGS}, a=(3, 60), b=(2, 39)),
    _template("birds", "{a} {bird} sit on a {place}. {b} fly away. How many are left?", "a-b",
              {"bird": "birds crows doves ducks", "place": "roof fence wall wire"}, a=(6, 60), b=(2, 40)),
    _template("crates", "A crate holds {a} {fruit}. How many {fruit} are in {b} crates?", "a*b", {"fruit": _FRUIT},
              a=(2, 15), b=(2, 9)),
    _template("share", "{name} shares {a} {sweet} equally among {b} friends. How many does each get?", "a/b",
              {"sweet": _SWEETS}, a=(6, 96), b=(2, 9)),
    _template("seats", "A train has {a} cars with {b} seats each. How many seats are there?", "a*b",
              a=(2, 9), b=(4, 20)),
    _template("age", "{name} is {a} years old. {other} is {b} years older. How old is {other}?", "a+b",
              a=(4, 60), b=(2, 30)),
    _template("rope", "A {cloth} of {a} meters is cut into {b} equal parts. How many meters long is each?", "a/b",
              {"cloth": "rope ribbon wire cable"}, a=(6, 96), b=(2, 9)),
    _template("pages", "{name} reads {a} pages a day. How many pages does {name} read in {b} days?", "a*b",
              a=(3, 20), b=(2, 9)),
    _template("class", "{a} pupils are in a class. {b} are boys. How many are girls?", "a-b", a=(12, 45), b=(5, 25)),
    _template("run", "{name} {ran} {a} km on Monday and {b} km on Friday. How many km in all?", "a+b",
              {"ran": "ran walked cycled"}, a=(2, 45), b=(2, 45)),
    _template("eggs", "A feast needs {a} {egg}. {name} has {b}. How many more are needed?", "a-b",
              {"egg": "eggs nuts cherries berries"}, test_only=True, a=(8, 50), b=(2, 30)),
    _template("teams", "{a} players form teams of {b}. How many teams are there?", "a/b", test_only=True,
              a=(6, 96), b=(2, 9)),
)

_TWO_STEPS = (
    _template("pens", "{name} buys {a} {good} for ${b} each and a bag for ${c}. How many dollars is that?",
              "a*b x+c", {"good": _GOODS}, a=(2, 9), b=(2, 9), c=(3, 20)),
    _template("change", "{name} buys {a} {good} for ${b} each and pays with ${c}. How many dollars are left?",
              "a*b c-x", {"good": _GOODS}, a=(2, 9), b=(2, 9), c=(20, 90)),
    _template("hens", "A farm has {a} {hen} and {b} {cow}. {c} animals are sold. How many are left?",
              "a+b x-c", {"hen": "hens ducks geese", "cow": "cows sheep goats pigs"}, a=(5, 30), b=(3, 25), c=(2, 20)),
    _template("rows", "A farmer plants {a} rows of {b} trees. {c} die. How many trees are left?", "a*b x-c",
              a=(2, 9), b=(4, 12), c=(2, 20)),
    _template("train", "A {train} carries {a} people. {b} get off and {c} get on. How many are on it now?",
              "a-b x+c", {"train": "train bus tram ferry"}, a=(15, 60), b=(3, 25), c=(2, 20)),
    _template("pool", "{name} has {a} {thing} and {other} has {b}. They share equally. How many does each get?",
              "a+b x/2", {"thing": _THINGS}, a=(3, 60), b=(3, 60)),
    _template("twice", "{name} has {a} {thing}. {other} has twice as many. How many do they have together?",
              "a*2 a+x", {"thing": _THINGS}, a=(3, 60)),
    _template("half", "{name} baked {a} {cookie} and sold half. Then {name} baked {b} more. How many are there?",
              "a/2 x+b", {"cookie": "cookies rolls buns pies"}, a=(6, 80), b=(2, 40)),
    _template("bags", "{name} puts {a} {fruit} and {b} more into bags of {c}. How many bags are filled?",
              "a+b x/c", {"fruit": _FRUIT}, a=(5, 40), b=(3, 30), c=(2, 9)),
    _template("shelves", "{a} shelves hold {b} books each. {c} books are lent. How many remain?", "a*b x-c",
              a=(2, 9), b=(5, 12), c=(3, 25)),
    _template("wage", "{name} earns ${a} an hour for {b} hours and gets ${c} extra. How many dollars in all?",
              "a*b x+c", a=(5, 15), b=(2, 9), c=(2, 20)),
    _template("save", "{name} has ${a} and saves ${b} a week. How many dollars after {c} weeks?", "b*c a+x",
              a=(5, 40), b=(2, 12), c=(2, 9)),
    _template("pack", "{name} opens {a} packs of {b} cards and gives {c} to {other}. How many are left?", "a*b x-c",
              a=(2, 9), b=(3, 12), c=(2, 20)),
    _template("soup", "A soup needs {a} carrots a pot. {name} cooks {b} pots and has {c} carrots. How many remain?",
              "a*b c-x", a=(2, 8), b=(2, 8), c=(20, 80)),
    _template("desks", "A school has {a} rooms with {b} desks each and {c} spare desks. How many desks in all?",
              "a*b x+c", a=(2, 9), b=(5, 15), c=(2, 20)),
    _template("trip", "A {car} goes {a} km an hour for {b} hours. The trip is {c} km. How many km remain?", "a*b c-x",
              {"car": "car van boat bike"}, a=(6, 40), b=(2, 5), c=(60, 150)),
    _template("fish", "{name} caught {a} fish, {other} caught {b} more than {name}. How many in all?", "a+b a+x",
              a=(3, 45), b=(2, 30)),
    _template("weeks", "{name} drinks {a} cups of {tea} a day and {b} more on Sunday. How many cups a week?",
              "a*7 x+b", {"tea": "tea water milk juice"}, a=(2, 12), b=(2, 15)),
    _template("plants", "{name} has {a} {rose}. {b} wilt and the rest fill {c} vases equally. How many in each?",
              "a-b x/c", {"rose": "roses tulips lilies"}, a=(12, 60), b=(2, 15), c=(2, 8)),
    _template("dozen", "{name} buys {a} dozen {egg} and breaks {b}. How many are whole?", "a*12 x-b",
              {"egg": "eggs plates cups"}, a=(2, 9), b=(2, 20)),
    _template("stage", "A hall has {a} rows of {b} chairs. {c} chairs are empty. How many are taken?", "a*b x-c",
              test_only=True, a=(3, 12), b=(4, 12), c=(2, 25)),
    _template("zoo", "A zoo has {a} {ape} and {b} fewer {bear}. How many of both?", "a-b a+x",
              {"ape": "apes lions zebras", "bear": "bears wolves seals"}, test_only=True, a=(8, 50), b=(2, 25)),
    _template("juice", "{name} pours {a} liters of juice and {b} of water into jugs of {c}. How many jugs?",
              "a+b x/c", test_only=True, a=(6, 40), b=(2, 30), c=(2, 8)),
    _template("ticket", "A ticket costs ${a}. {b} friends go and get ${c} off. How many dollars in all?",
              "a*b x-c", test_only=True, a=(4, 15), b=(2, 9), c=(2, 20)),
)

_THREE_STEPS = (
    _template("fair", "{name} sells {a} {good} for ${b} and {c} caps for ${d} each. How many dollars is that?",
              "a*b c*d x+y", {"good": "pens books mugs toys bowls"}, a=(2, 9), b=(2, 8), c=(2, 7), d=(2, 7)),
    _template("stall", "A stall has {a} crates of {b} {fruit}. {c} rot, {d} are sold. How many are left?",
              "a*b x-c y-d", {"fruit": _FRUIT}, a=(3, 9), b=(5, 12), c=(2, 9), d=(2, 9)),
    _template("metro", "A {bus} has {a} riders. {b} get off, {c} get on, then {d} get off. How many ride now?",
              "a-b x+c y-d", {"bus": "bus tram train"}, a=(20, 50), b=(3, 12), c=(2, 9), d=(2, 9)),
    _template("party", "{name} has {a} boxes of {b} {sweet} and {c} more. {d} kids share. How many does each get?",
              "a*b x+c y/d", {"sweet": _SWEETS}, a=(2, 9), b=(2, 9), c=(2, 12), d=(2, 9)),
    _template("work", "{name} earns ${a} a day for {b} days, spends ${c} and finds ${d}. How many dollars are left?",
              "a*b x-c y+d", a=(6, 15), b=(2, 9), c=(3, 12), d=(2, 9)),
    _template("garden", "{name} plants {a} rows of {b} beans and {c} rows of {d} peas. How many plants in all?",
              "a*b c*d x+y", a=(2, 7), b=(3, 9), c=(2, 7), d=(3, 9)),
    _template("beads", "{name} has {a} red and {b} blue beads, loses {c} and makes chains of {d}. How many chains?",
              "a+b x-c y/d", a=(8, 30), b=(5, 20), c=(2, 9), d=(2, 8)),
    _template("double", "{name} has {a} {thing}. {other} has twice as many but loses {b}. How many in all?",
              "a*2 x-b a+y", {"thing": _THINGS}, a=(5, 45), b=(2, 25)),
    _template("third", "{name} has {a} {thing}, {other} has {b} times as many. They lose {c}. How many are left?",
              "a*b a+x y-c", {"thing": _THINGS}, a=(3, 25), b=(2, 5), c=(2, 20)),
    _template("cinema", "{a} adults and {b} kids pay ${c} each for a film. They had ${d}. How many dollars are left?",
              "a+b x*c d-y", a=(2, 5), b=(2, 6), c=(3, 8), d=(50, 95)),
    _template("milk", "{a} cows give {b} liters each. {c} liters are drunk, the rest fills cans of {d}. How many?",
              "a*b x-c y/d", a=(3, 9), b=(4, 12), c=(2, 12), d=(2, 8)),
    _template("study", "{name} reads {a} pages a day for {b} days, then {c} more. The book has {d}. How many remain?",
              "a*b x+c d-y", a=(4, 12), b=(2, 8), c=(3, 12), d=(60, 110)),
    _template("shirts", "{name} buys {a} {shirt} for ${b} each, gets ${c} off and pays with ${d}. How much is left?",
              "a*b x-c d-y", {"shirt": "shirts hats belts scarves"}, a=(2, 7), b=(4, 12), c=(2, 9), d=(50, 90)),
    _template("halves", "{name} picks {a} {fruit} and {other} {b}. They eat half and find {c}. How many are there?",
              "a+b x/2 y+c", {"fruit": _FRUIT}, a=(5, 30), b=(5, 30), c=(2, 15)),
    _template("tank", "A tank holds {a} liters. {b} buckets of {c} are taken, {d} liters are added. How many liters?",
              "b*c a-x y+d", test_only=True, a=(50, 90), b=(2, 7), c=(3, 9), d=(2, 12)),
    _template("library", "A library has {a} shelves of {b} books. {c} are lent and half the rest sold. How many stay?",
              "a*b x-c y/2", test_only=True, a=(3, 9), b=(5, 15), c=(2, 20)),
    _template("baker", "{name} bakes {a} trays of {b} buns, eats {c} and packs the rest in boxes of {d}. How many?",
              "a*b x-c y/d", test_only=True, a=(2, 8), b=(4, 12), c=(2, 9), d=(2, 8)),
)

# fmt: on

TEMPLATES: tuple[Template, ...] = _ONE_STEP + _TWO_STEPS + _THREE_STEPS
