"""Template families about money: buying, selling, earning, saving and sharing costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthetic_numbers import Worked, add, div, mul, sub

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthetic_numbers import Draw


def two_purchases(d: Draw) -> Worked:
    """Two products and their sum."""
    who, (one, two) = d.name(), d.goods(2)
    (a, b), (p, q) = d.factors(), d.factors()
    return Worked(
        f"{who} buys {b} {one}s at {a} dollars each and {q} {two}s at {p} dollars each for a {d.place()}. "
        f"How many dollars does {who} spend in total?",
        [f"The {one}s cost {mul(b, a)} dollars.", f"The {two}s cost {mul(q, p)} dollars.",
         f"Together they cost {add(a * b, p * q)} dollars."],
        a * b + p * q,
    )  # fmt: skip


def weekly_savings(d: Draw) -> Worked:
    """A product, a sum and a difference."""
    who, start, (weekly, weeks) = d.name(), d.amount(), d.factors()
    price = d.part(start + weekly * weeks)
    return Worked(
        f"{who} has {start} dollars and saves {weekly} dollars a week for {weeks} weeks. Then {who} buys a "
        f"{d.goods(1)[0]} for {price} dollars. How many dollars are left?",
        [f"{who} saves {mul(weekly, weeks)} dollars.", f"That makes {add(start, weekly * weeks)} dollars.",
         f"After the purchase {sub(start + weekly * weeks, price)} dollars are left."],
        start + weekly * weeks - price,
    )  # fmt: skip


def wages_and_bonus(d: Draw) -> Worked:
    """A product, a sum and a product."""
    who, (hours, rate), bonus, days = d.name(), d.factors(), d.amount(), d.few()
    month = hours * rate
    return Worked(
        f"{who} works {hours} hours a month at the {d.place()} for {rate} dollars an hour and gets a bonus of {bonus} "
        f"dollars a month. How many dollars does {who} earn in {days} months?",
        [f"The hours bring {mul(hours, rate)} dollars a month.", f"With the bonus that is {add(month, bonus)} dollars.",
         f"In {days} months {who} earns {mul(month + bonus, days)} dollars."],
        (month + bonus) * days,
    )  # fmt: skip


def ticket_sales(d: Draw) -> Worked:
    """Two products, their sum and a difference."""
    (adults, adult), (children, child) = d.factors(), d.factors()
    takings = adults * adult + children * child
    cost = d.part(takings)
    return Worked(
        f"A {d.word('circus', 'cinema', 'theater', 'zoo', 'museum')} sells {adults} adult tickets at {adult} dollars and "
        f"{children} child tickets at {child} dollars. Its costs are {cost} dollars. How many dollars of profit remain?",
        [f"Adult tickets bring {mul(adults, adult)} dollars.", f"Child tickets bring {mul(children, child)} dollars.",
         f"In total that is {add(adults * adult, children * child)} dollars.",
         f"The profit is {sub(takings, cost)} dollars."],
        takings - cost,
    )  # fmt: skip


def quarter_off(d: Draw) -> Worked:
    """A division, a difference and a product."""
    who, share = d.name(), d.word("half", "a third", "a quarter", "a fifth")
    parts = {"half": 2, "a third": 3, "a quarter": 4, "a fifth": 5}[share]
    _, _, saving = d.division()
    price, count = saving * parts, d.few()
    return Worked(
        f"A {d.goods(1)[0]} costs {price} dollars, but today the {d.place()} takes {share} off the price. {who} buys {count} "
        f"of them. How many dollars does {who} pay?",
        [f"The saving is {div(price, parts)} dollars.", f"The new price is {sub(price, saving)} dollars.",
         f"{who} pays {mul(price - saving, count)} dollars."],
        (price - saving) * count,
    )  # fmt: skip


def fundraiser(d: Draw) -> Worked:
    """A sum, a difference and a division."""
    rest, people, each = d.division()
    first, second = d.amount(), d.amount()
    goal = rest + first + second
    return Worked(
        f"A school wants to raise {goal} dollars. The fair brings {first} dollars and the raffle {second} dollars. The rest is "
        f"shared equally by {people} parents. How many dollars does each parent give?",
        [f"So far there are {add(first, second)} dollars.", f"The rest is {sub(goal, first + second)} dollars.",
         f"Each parent gives {div(rest, people)} dollars."],
        each,
    )  # fmt: skip


def bank_account(d: Draw) -> Worked:
    """A sum of three and a difference."""
    who, one, two, three = d.name(), d.amount(), d.amount(), d.amount()
    total = one + two + three
    out = d.part(total)
    return Worked(
        f"{who} puts {one} dollars into an account in {d.word('March', 'April', 'May')}, {two} dollars in June and {three} "
        f"dollars in July, and takes out {out} dollars in August. How many dollars of these remain?",
        [f"The deposits are {add(one, two, three)} dollars.", f"After August {sub(total, out)} dollars remain."],
        total - out,
    )  # fmt: skip


def phone_plan(d: Draw) -> Worked:
    """A product, a sum and a product."""
    who, (monthly, months), fee = d.name(), d.factors(), d.amount()
    people = d.few()
    return Worked(
        f"A phone plan costs {monthly} dollars a month and {fee} dollars once at the start. {who} orders it for {people} people "
        f"and for {months} months. How many dollars does {who} pay?",
        [f"The months cost {mul(monthly, months)} dollars a person.",
         f"With the start that is {add(monthly * months, fee)} dollars.",
         f"For all it is {mul(monthly * months + fee, people)} dollars."],
        (monthly * months + fee) * people,
    )  # fmt: skip


def shared_bill(d: Draw) -> Worked:
    """A sum, a division and a sum."""
    bill, people, each = d.division()
    food = d.part(bill)
    extra = d.few()
    return Worked(
        f"At dinner {people} friends share the bill equally. The food costs {food} dollars and the drinks cost "
        f"{bill - food} dollars. Each friend also leaves a tip of {extra} dollars. How many dollars does each friend pay?",
        [f"The bill is {add(food, bill - food)} dollars.", f"Each share is {div(bill, people)} dollars.",
         f"With the tip that is {add(each, extra)} dollars."],
        each + extra,
    )  # fmt: skip


def resale(d: Draw) -> Worked:
    """Two products and their difference."""
    who, (count, low) = d.name(), d.factors()
    gain, thing = d.few(), d.item()
    return Worked(
        f"{who} buys {count} boxes of {thing} for {low} dollars a box and sells every box for {low + gain} dollars. "
        f"How many dollars more does {who} take in than pay?",
        [f"{who} pays {mul(count, low)} dollars.", f"{who} takes in {mul(count, low + gain)} dollars.",
         f"The difference is {sub(count * (low + gain), count * low)} dollars."],
        count * gain,
    )  # fmt: skip


def coins(d: Draw) -> Worked:
    """Two products, their sum and a difference."""
    who, dimes, quarters = d.name(), d.amount(), d.amount()
    total = dimes * 10 + quarters * 25
    spent = d.part(total)
    return Worked(
        f"{who} has {dimes} coins of 10 cents and {quarters} coins of 25 cents and spends {spent} cents. "
        f"How many cents does {who} have left?",
        [f"The small coins make {mul(dimes, 10)} cents.", f"The large coins make {mul(quarters, 25)} cents.",
         f"Together that is {add(dimes * 10, quarters * 25)} cents.", f"There are {sub(total, spent)} cents left."],
        total - spent,
    )  # fmt: skip


def fuel(d: Draw) -> Worked:
    """A division, a product and a sum."""
    distance, per, used = d.division()
    who, price = d.name(), d.few()
    return Worked(
        f"The van of {who} goes {per} kilometers on one liter of fuel. A liter costs {price} dollars. {who} drives {distance} "
        f"kilometers and pays {price * used // 2} dollars for parking. How many dollars does the trip cost?",
        [f"The van uses {div(distance, per)} liters.", f"The fuel costs {mul(used, price)} dollars.",
         f"With parking that is {add(used * price, price * used // 2)} dollars."],
        used * price + price * used // 2,
    )  # fmt: skip


def installments(d: Draw) -> Worked:
    """A difference and a division."""
    rest, months, monthly = d.division()
    who, first = d.name(), d.amount()
    return Worked(
        f"{who} buys a {d.word('piano', 'boat', 'car', 'sofa', 'bicycle', 'camera')} for {rest + first} dollars, pays {first} "
        f"dollars at once and the rest in {months} equal monthly payments. How many dollars is one payment?",
        [f"The rest is {sub(rest + first, first)} dollars.", f"One payment is {div(rest, months)} dollars."],
        monthly,
    )  # fmt: skip


def three_earners(d: Draw) -> Worked:
    """A sum, a product and a sum of three."""
    (a, b, c), first, more, times = d.names(3), d.amount(), d.amount(), d.few()
    second, third = first + more, first * times
    return Worked(
        f"{a} earns {first} dollars in a week. {b} earns {more} dollars more than {a}, and {c} earns {times} times as much as "
        f"{a}. How many dollars do the three earn together?",
        [f"{b} earns {add(first, more)} dollars.", f"{c} earns {mul(first, times)} dollars.",
         f"Together they earn {add(first, second, third)} dollars."],
        first + second + third,
    )  # fmt: skip


def market_stall(d: Draw) -> Worked:
    """A product, a difference and a product."""
    who, one, (baskets, price), rent, days = d.name(), d.item(), d.factors(), d.few(), d.few()
    daily = baskets * price
    return Worked(
        f"Each day {who} sells {baskets} baskets of {one} at {price} dollars a basket and pays {rent} dollars for the stall. "
        f"How many dollars does {who} keep after {days} days?",
        [f"The baskets bring {mul(baskets, price)} dollars a day.", f"After the stall that is {sub(daily, rent)} dollars.",
         f"In {days} days {who} keeps {mul(daily - rent, days)} dollars."],
        (daily - rent) * days,
    )  # fmt: skip


MONEY_FAMILIES: tuple[Callable[[Draw], Worked], ...] = (
    two_purchases, weekly_savings, wages_and_bonus, ticket_sales, quarter_off, fundraiser, bank_account, phone_plan,
    shared_bill, resale, coins, fuel, installments, three_earners, market_stall,
)  # fmt: skip
"""The families of this module, each drawn equally often."""
