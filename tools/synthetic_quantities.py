"""Template families about counted and measured things: packing, stock, travel, areas, reading, harvests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthetic_numbers import Worked, add, div, mul, sub

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthetic_numbers import Draw


def packing(d: Draw) -> Worked:
    """A product and a difference."""
    who, other = d.names(2)
    thing, (per, boxes) = d.item(), d.factors()
    gift = d.part(per * boxes)
    return Worked(
        f"{who} packs {boxes} {d.word('boxes', 'crates', 'bags')} with {per} {thing} each and gives {gift} {thing} to {other}. "
        f"How many {thing} does {who} keep?",
        [f"{who} packs {mul(boxes, per)} {thing}.", f"{who} keeps {sub(per * boxes, gift)} {thing}."],
        per * boxes - gift,
    )  # fmt: skip


def equal_share(d: Draw) -> Worked:
    """A sum and a division."""
    total, people, each = d.division()
    (who, other), thing = d.names(2), d.item()
    mine = d.part(total)
    return Worked(
        f"{who} has {mine} {thing} and {other} has {total - mine} {thing}. They put them together and share them equally among "
        f"{people} children. How many {thing} does each child get?",
        [f"Together they have {add(mine, total - mine)} {thing}.", f"Each child gets {div(total, people)} {thing}."],
        each,
    )  # fmt: skip


def library(d: Draw) -> Worked:
    """A product, a difference and a sum."""
    per, shelves = d.factors()
    lent, back = d.part(per * shelves), d.amount()
    held = per * shelves
    return Worked(
        f"A library has {shelves} shelves with {per} books each. On {d.word('Monday', 'Tuesday', 'Friday')} {lent} books are "
        f"lent out and {back} other books come back. How many books are there now?",
        [f"The shelves hold {mul(shelves, per)} books.", f"After lending there are {sub(held, lent)} books.",
         f"Now there are {add(held - lent, back)} books."],
        held - lent + back,
    )  # fmt: skip


def orchard(d: Draw) -> Worked:
    """Two products and a difference."""
    trees, rows = d.factors()
    each, fruit = d.few(), d.word("apples", "pears", "plums", "peaches", "figs")
    planted = trees * rows
    spoiled = d.part(planted * each)
    return Worked(
        f"An orchard has {rows} rows of {trees} trees. Each tree bears {each} kilograms of {fruit}, and the rain spoils "
        f"{spoiled} kilograms of them. How many kilograms of {fruit} remain?",
        [f"There are {mul(rows, trees)} trees.", f"They bear {mul(planted, each)} kilograms.",
         f"There remain {sub(planted * each, spoiled)} kilograms."],
        planted * each - spoiled,
    )  # fmt: skip


def two_legs(d: Draw) -> Worked:
    """Two products and their sum."""
    (speed, hours), (speed2, hours2) = d.factors(), d.factors()
    who = d.name()
    return Worked(
        f"{who} travels {hours} hours by {d.word('train', 'bus', 'ship')} at {speed} kilometers an hour and then {hours2} hours "
        f"by car at {speed2} kilometers an hour. How many kilometers is that in total?",
        [f"The first part is {mul(hours, speed)} kilometers.", f"The second part is {mul(hours2, speed2)} kilometers.",
         f"In total it is {add(hours * speed, hours2 * speed2)} kilometers."],
        hours * speed + hours2 * speed2,
    )  # fmt: skip


def bakery_trays(d: Draw) -> Worked:
    """A difference, a division and a difference."""
    total, per, bags = d.division()
    sold = d.amount()
    baked, more = total + sold, d.few()
    food = d.word("rolls", "muffins", "cookies", "pies", "bagels")
    return Worked(
        f"A bakery bakes {baked} {food} and sells {sold} of them in the morning. The rest goes into bags of {per}. Then {more} "
        f"bags are sold. How many bags are left?",
        [f"After the morning {sub(baked, sold)} {food} are left.", f"They fill {div(total, per)} bags.",
         f"There are {sub(bags, more)} bags left."],
        bags - more,
    )  # fmt: skip


def school_trip(d: Draw) -> Worked:
    """A sum, a division and a product."""
    people, seats, buses = d.division()
    adults = d.part(people)
    price = d.few()
    return Worked(
        f"On a trip there are {people - adults} children and {adults} adults. A bus has {seats} seats and every bus is full. "
        f"A bus needs {price} liters of fuel. How many liters do all buses need?",
        [f"There are {add(people - adults, adults)} people.", f"They fill {div(people, seats)} buses.",
         f"The buses need {mul(buses, price)} liters."],
        buses * price,
    )  # fmt: skip


def printer(d: Draw) -> Worked:
    """A product, a sum and a product."""
    pages, minutes = d.factors()
    extra, parts = d.amount(), d.few()
    return Worked(
        f"A printer prints {pages} pages a minute for {minutes} minutes. Another one prints {extra} pages in that time. "
        f"How many pages do they print in {parts} such rounds?",
        [f"The first one prints {mul(pages, minutes)} pages.", f"Both print {add(pages * minutes, extra)} pages.",
         f"In {parts} rounds they print {mul(pages * minutes + extra, parts)} pages."],
        (pages * minutes + extra) * parts,
    )  # fmt: skip


def floor_area(d: Draw) -> Worked:
    """A product, a difference and a product."""
    length, width = d.factors()
    shed = d.part(length * width)
    seed = d.few()
    return Worked(
        f"A {d.word('lawn', 'field', 'yard', 'meadow')} is {length} meters long and {width} meters wide. A shed takes {shed} "
        f"square meters of it. Each other square meter needs {seed} grams of seed. How many grams are needed?",
        [f"The area is {mul(length, width)} square meters.", f"Without the shed it is {sub(length * width, shed)}.",
         f"The seed weighs {mul(length * width - shed, seed)} grams."],
        (length * width - shed) * seed,
    )  # fmt: skip


def fence(d: Draw) -> Worked:
    """A sum, a product and a difference."""
    length, width, gate = d.amount(), d.amount(), d.few()
    return Worked(
        f"A {d.word('pasture', 'garden', 'park')} is {length} meters long and {width} meters wide. A fence goes all around it "
        f"except for a gate of {gate} meters. How many meters of fence are there?",
        [f"Half of the way around is {add(length, width)} meters.", f"All around is {mul(length + width, 2)} meters.",
         f"The fence has {sub(2 * (length + width), gate)} meters."],
        2 * (length + width) - gate,
    )  # fmt: skip


def water_tank(d: Draw) -> Worked:
    """A difference, a product and a sum."""
    (inflow, minutes), start = d.factors(), d.amount()
    leak = d.part(inflow)
    return Worked(
        f"A tank holds {start} liters. A pump adds {inflow} liters a minute, and {leak} liters a minute leak out. "
        f"How many liters are in the tank after {minutes} minutes?",
        [f"Each minute adds {sub(inflow, leak)} liters.", f"In {minutes} minutes that is {mul(inflow - leak, minutes)} liters.",
         f"The tank then holds {add(start, (inflow - leak) * minutes)} liters."],
        start + (inflow - leak) * minutes,
    )  # fmt: skip


def trucks(d: Draw) -> Worked:
    """A sum, a division and a product."""
    load, truck, count = d.division()
    thing, extra = d.item(), d.part(load)
    days = d.few()
    return Worked(
        f"A {d.place()} has {load - extra} crates of {thing} and receives {extra} more. A truck takes {truck} crates. Each truck "
        f"drives {days} hours. How many hours do the trucks drive together?",
        [f"There are {add(load - extra, extra)} crates.", f"They need {div(load, truck)} trucks.",
         f"The trucks drive {mul(count, days)} hours."],
        count * days,
    )  # fmt: skip


def collection(d: Draw) -> Worked:
    """A product, a difference and a sum."""
    (who, other), thing, start, times = d.names(2), d.item(), d.amount(), d.few()
    gift = d.part(start * times)
    return Worked(
        f"{who} collects {start} {thing}. {other} collects {times} times as many and gives {gift} of them to {who}. "
        f"How many {thing} does {who} have now?",
        [f"{other} collects {mul(start, times)} {thing}.", f"{other} keeps {sub(start * times, gift)} of them.",
         f"{who} now has {add(start, gift)} {thing}."],
        start + gift,
    )  # fmt: skip


def reading(d: Draw) -> Worked:
    """A difference, a division and a sum."""
    rest, days, daily = d.division()
    who, read, more = d.name(), d.amount(), d.few()
    return Worked(
        f"{who} has read {read} of the {rest + read} pages of a long novel and wants to finish it in {days} days. Besides, {who} "
        f"reads {more} pages of a newspaper every day. How many pages a day is that?",
        [f"There are {sub(rest + read, read)} pages to go.", f"That is {div(rest, days)} pages a day.",
         f"With the newspaper it is {add(daily, more)} pages."],
        daily + more,
    )  # fmt: skip


def three_days(d: Draw) -> Worked:
    """A sum, a difference and a sum of three."""
    who, first, more = d.name(), d.amount(), d.amount()
    less = d.part(first)
    what = d.word("steps", "meters", "bricks", "letters", "photos", "stitches")
    return Worked(
        f"{who} counts {first} {what} on the first day, {more} more than that on the second day, and {less} fewer than on the "
        f"first day on the third day. How many {what} are that in all?",
        [f"On the second day there are {add(first, more)} {what}.", f"On the third day there are {sub(first, less)} {what}.",
         f"In all there are {add(first, first + more, first - less)} {what}."],
        first + first + more + first - less,
    )  # fmt: skip


def recipe(d: Draw) -> Worked:
    """A product and a difference."""
    grams, batches = d.factors()
    have = d.part(grams * batches)
    who, food = d.name(), d.word("flour", "sugar", "rice", "butter", "oats", "cheese")
    return Worked(
        f"One batch needs {grams} grams of {food}. {who} makes {batches} batches and has {have} grams at home. "
        f"How many grams of {food} are missing?",
        [f"The batches need {mul(grams, batches)} grams.", f"There are {sub(grams * batches, have)} grams missing."],
        grams * batches - have,
    )  # fmt: skip


def half_left(d: Draw) -> Worked:
    """A division, a difference and a sum."""
    who, other = d.names(2)
    total, parts, one = d.division()
    thing, more = d.item(), d.amount()
    return Worked(
        f"{who} sorts {total} {thing} into {parts} equal piles, gives one pile to {other} and then finds {more} more {thing}. "
        f"How many {thing} does {who} have now?",
        [f"One pile has {div(total, parts)} {thing}.", f"After the gift there are {sub(total, one)} {thing}.",
         f"Now there are {add(total - one, more)} {thing}."],
        total - one + more,
    )  # fmt: skip


def stock_of_three(d: Draw) -> Worked:
    """A sum of three and a difference."""
    (one, two, three), a, b, c = d.items(3), d.amount(), d.amount(), d.amount()
    sold = d.part(a + b + c)
    return Worked(
        f"A {d.place()} has {a} {one}, {b} {two} and {c} {three}. In one {d.word('week', 'month', 'day')} {sold} of all these "
        f"things are sold. How many things are left?",
        [f"There are {add(a, b, c)} things.", f"There are {sub(a + b + c, sold)} things left."],
        a + b + c - sold,
    )  # fmt: skip


QUANTITY_FAMILIES: tuple[Callable[[Draw], Worked], ...] = (
    packing, equal_share, library, orchard, two_legs, bakery_trays, school_trip, printer, floor_area, fence, water_tank, trucks,
    collection, reading, three_days, recipe, half_left, stock_of_three,
)  # fmt: skip
"""The families of this module, each drawn equally often."""
