"""Write 24 small text tasks, to try ``--data jsonl:DIR`` on: rewrites, extractions, formats, arithmetic in words.

python -m sweeps.text_tasks DIR
python sweeps/atomic_lora.py --base smollm2 --data jsonl:DIR --preset demo --set answers=exact --set answer_tokens=32

Every second task has messages, the others prompt and completion. Rows are drawn from a few dozen words; no prompt comes
twice, and the same command writes the same files.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.core.cli import Parser, run_main, whole_number
from trainables.common.errors import InputError

FIRST = "Ada Ben Cora Dan Eva Finn Gina Hugo Iris Jon Kate Leo Mia Ned Olga Paul Rosa Sam Tess Uri Vera Will".split()
LAST = "Adler Baker Cole Dunn Evans Fox Grant Hale Irwin Jones Klein Lang Moore Nash Owen Price Reed Stone".split()
CITIES = "Oslo Rome Lima Cairo Delhi Paris Quito Tokyo Accra Berlin Dublin Havana Lisbon Madrid Nairobi Vienna".split()
COLOURS = "red blue green black white yellow purple orange brown grey".split()
THINGS = "lamp door chair boat cup coat bell kite drum rope basket window ladder bottle pencil wagon".split()
VERBS = "paint open clean watch call help push pull lift follow visit fix".split()
MONTHS = "January February March April May June July August September October November December".split()
ADJECTIVES = "old new small tall heavy quiet bright broken round empty".split()
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

Row = tuple[str, str]


def in_words(number: int) -> str:
    """Return a number from 0 to 999 in words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens = TENS[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens}-{ONES[number % 10]}"
    rest = f" {in_words(number % 100)}" if number % 100 else ""
    return f"{ONES[number // 100]} hundred{rest}"


def third(verb: str) -> str:
    return f"{verb}es" if verb.endswith(("ch", "sh", "x")) else f"{verb}s"


def past(verb: str) -> str:
    return f"{verb}d" if verb.endswith("e") else f"{verb}ed"


def _names(rng: Random) -> tuple[str, str]:
    return rng.choice(FIRST), rng.choice(LAST)


def _thing(rng: Random) -> str:
    return f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"


def _date(rng: Random) -> tuple[int, int, int]:
    return rng.randint(1950, 2029), rng.randint(1, 12), rng.randint(1, 28)


def last_first(rng: Random) -> Row:
    first, last = _names(rng)
    return f"{first} {last}", f"{last}, {first}"


def initials(rng: Random) -> Row:
    names = rng.choice(FIRST), rng.choice(FIRST), rng.choice(LAST)
    return " ".join(names), " ".join(f"{name[0]}." for name in names)


def past_tense(rng: Random) -> Row:
    name, verb, thing = rng.choice(FIRST), rng.choice(VERBS), _thing(rng)
    return f"{name} {third(verb)} the {thing}.", f"{name} {past(verb)} the {thing}."


def passive(rng: Random) -> Row:
    name, verb, thing = rng.choice(FIRST), rng.choice(VERBS), _thing(rng)
    return f"{name} {past(verb)} the {thing}.", f"The {thing} was {past(verb)} by {name}."


def negation(rng: Random) -> Row:
    thing, colour = _thing(rng), rng.choice(COLOURS)
    return f"The {thing} is {colour}.", f"The {thing} is not {colour}."


def question(rng: Random) -> Row:
    thing, colour = _thing(rng), rng.choice(COLOURS)
    return f"The {thing} is {colour}.", f"Is the {thing} {colour}?"


def plural(rng: Random) -> Row:
    thing, count, colour = _thing(rng), rng.randint(2, 12), rng.choice(COLOURS)
    return f"one {colour} {thing}, {in_words(count)} of them", f"{in_words(count)} {colour} {thing}s"


def shouted(rng: Random) -> Row:
    words = f"the {_thing(rng)} in {rng.choice(CITIES)}".split()
    return " ".join(words), " ".join([words[0], words[1].upper(), *words[2:]])


def email(rng: Random) -> Row:
    first, last = _names(rng)
    address = f"{first}.{last}@{rng.choice(THINGS)}.org".lower()
    return f"Write to {first} in {rng.choice(CITIES)} at {address} before {rng.choice(MONTHS)}.", address


def price(rng: Random) -> Row:
    cost = f"${rng.randint(1, 99)}.{rng.randint(0, 99):02d}"
    return f"The {_thing(rng)} cost {rng.choice(FIRST)} {cost} in {rng.randint(1950, 2029)}.", cost


def destination(rng: Random) -> Row:
    start, end = rng.sample(CITIES, 2)
    return f"{rng.choice(FIRST)} moved from {start} to {end} in {rng.randint(1950, 2029)}.", end


def year(rng: Random) -> Row:
    when = str(rng.randint(1950, 2029))
    return f"In {when}, {' '.join(_names(rng))} sold {rng.randint(2, 90)} {rng.choice(THINGS)}s.", when


def colours(rng: Random) -> Row:
    one, two = rng.sample(COLOURS, 2)
    return f"A {one} {rng.choice(THINGS)} stood by the {two} {rng.choice(THINGS)}.", f"{one}, {two}"


def person(rng: Random) -> Row:
    first, last = _names(rng)
    return f"The {_thing(rng)} that {first} {last} left in {rng.choice(CITIES)} is {rng.choice(COLOURS)}.", (
        f"{first} {last}"
    )


def iso_date(rng: Random) -> Row:
    y, m, d = _date(rng)
    return f"{MONTHS[m - 1]} {d}, {y}", f"{y}-{m:02d}-{d:02d}"


def spoken_date(rng: Random) -> Row:
    y, m, d = _date(rng)
    return f"{y}-{m:02d}-{d:02d}", f"{d} {MONTHS[m - 1]} {y}"


def phone(rng: Random) -> Row:
    digits = "".join(rng.choices("0123456789", k=10))
    return digits, f"({digits[:3]}) {digits[3:6]}-{digits[6:]}"


def as_json(rng: Random) -> Row:
    name, age, city = rng.choice(FIRST), rng.randint(18, 90), rng.choice(CITIES)
    return f"name={name}; age={age}; city={city}", json.dumps({"name": name, "age": age, "city": city})


def clock(rng: Random) -> Row:
    hour, minute, half = rng.randint(1, 12), rng.randint(0, 59), rng.choice(("am", "pm"))
    return f"{hour}:{minute:02d} {half}", f"{hour % 12 + 12 * (half == 'pm'):02d}:{minute:02d}"


def snake_case(rng: Random) -> Row:
    words = f"{rng.choice(VERBS)} {rng.choice(COLOURS)} {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"
    return words.title(), words.replace(" ", "_")


def addition(rng: Random) -> Row:
    a, b = rng.randint(1, 50), rng.randint(1, 49)
    return f"{in_words(a)} plus {in_words(b)}", in_words(a + b)


def subtraction(rng: Random) -> Row:
    a, b = sorted((rng.randint(1, 99), rng.randint(0, 60)), reverse=True)
    return f"{in_words(a)} minus {in_words(b)}", in_words(a - b)


def larger(rng: Random) -> Row:
    a, b = rng.sample(range(1, 100), 2)
    return f"{in_words(a)} or {in_words(b)}", in_words(max(a, b))


def digits(rng: Random) -> Row:
    number = rng.randint(1, 999)
    return in_words(number), str(number)


TASKS: dict[str, dict[str, tuple[str, Callable[[Random], Row]]]] = {
    "rewrite": {
        "last_first": ("Write the name with the last name first.", last_first),
        "initials": ("Write the initials of the name.", initials),
        "past_tense": ("Write the sentence in the past tense.", past_tense),
        "passive": ("Write the sentence in the passive voice.", passive),
        "negation": ("Say the opposite with 'not'.", negation),
        "question": ("Make a question of the sentence.", question),
        "plural": ("Write it as a number and a plural.", plural),
        "shouted": ("Write the second word in capitals.", shouted),
    },
    "extract": {
        "email": ("Which email address is named?", email),
        "price": ("What is the price?", price),
        "destination": ("Which city did they move to?", destination),
        "year": ("Which year is named?", year),
        "colours": ("List the colours, separated by a comma.", colours),
        "person": ("Who is named? Give the full name.", person),
    },
    "format": {
        "iso_date": ("Write the date as year-month-day.", iso_date),
        "spoken_date": ("Write the date as day, month and year.", spoken_date),
        "phone": ("Write the phone number as (123) 456-7890.", phone),
        "as_json": ("Write it as JSON.", as_json),
        "clock": ("Write the time on the 24-hour clock.", clock),
        "snake_case": ("Write it in snake case.", snake_case),
    },
    "arithmetic": {
        "addition": ("Give the sum in words.", addition),
        "subtraction": ("Give the difference in words.", subtraction),
        "larger": ("Which number is larger?", larger),
        "digits": ("Write the number in digits.", digits),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="an empty folder, or a new one")
    parser.add_argument("--rows", type=whole_number(10), default=150, metavar="N", help="of each task (default: 150)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of all tasks (default: 0)")
    args = parser.parse_args(argv)
    folder = Path(args.folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a new folder.")
        write(folder, args.rows, args.seed)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}.") from error
    print(f"{sum(map(len, TASKS.values()))} tasks of {args.rows} rows in {folder}")
    return 0


def write(folder: Path, rows: int, seed: int) -> None:
    """Write every task and ``tasks.yaml`` into a folder."""
    said = []
    for category, tasks in TASKS.items():
        for place, (name, (instruction, draw)) in enumerate(tasks.items()):
            rng = random.Random(f"{seed}/{name}")
            found: dict[str, str] = {}
            while len(found) < rows:
                found.update([draw(rng)])
            lines = [_row(f"{instruction}\n{text}", answer, chat=place % 2 == 1) for text, answer in found.items()]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            said.append(f"{name}: {{category: {category}}}\n")
    (folder / "tasks.yaml").write_text("".join(said), encoding="utf-8")


def _row(prompt: str, completion: str, chat: bool) -> str:
    if not chat:
        return json.dumps({"prompt": f"{prompt}\n", "completion": completion})
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}
    return json.dumps({"messages": [user, assistant]})


if __name__ == "__main__":
    run_main(main)
