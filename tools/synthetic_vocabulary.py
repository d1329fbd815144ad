"""The words that the synthetic problems draw from: people, things and places, in plain ASCII."""

from __future__ import annotations

NAMES: tuple[str, ...] = tuple(
    """
    Aaron Abigail Ada Adam Adele Agnes Aisha Alan Albert Alejandro Alice Alina Amara Amelia Amir Ana Andre Angela Anika Anton
    Aria Arthur Asha Astrid Aurora Ava Axel Basil Beatriz Bella Ben Bianca Boris Brenda Bruno Caleb Camila Carla Carlos Carmen
    Cecilia Chen Chloe Clara Claude Colin Cora Cyrus Dahlia Daniel Daphne Daria David Deborah Dennis Diana Diego Dmitri Dora
    Dylan Edith Edgar Elena Eli Elias Elif Ella Emil Emma Enzo Erik Esme Esther Ethan Eva Farah Felix Fiona Flora Frank Freya
    Gabriel Gemma George Gita Gloria Grace Greta Gustav Hana Hannah Harold Hassan Hazel Hector Helen Henry Hugo Ibrahim Ida Igor
    Ines Ingrid Irene Iris Isaac Ivan Ivy Jack Jacob Jade Jamal James Jana Jasper Javier Jin Joan Joel Jonas Jose Julia June
    Kai Karim Karl Kate Keiko Kenji Kira Kofi Kwame Lara Laura Layla Leah Leif Lena Leo Lian Lila Linda Lior Lola Louis Lucas
    Lucia Luna Maeve Magnus Malik Marco Maria Marta Mateo Maya Mei Mila Milo Mina Miriam Mona Musa Nadia Naomi Nasir Nathan Nell
    Nia Nico Nils Nina Noah Noor Nora Olga Oliver Omar Oscar Otto Pablo Paula Pedro Penny Petra Pia Priya Quentin Rafael Rania
    Ravi Rita Robin Rohan Rosa Ruby Rufus Ruth Sadia Salma Sam Samira Sara Sean Selma Silas Simon Sofia Stella Sven Tamar Tara
    Theo Thomas Tobias Uma Vera Victor Viola Walter Wanda Wei Xavier Yara Yusuf Zara Zoe
    """.split()  # noqa: SIM905 - likewise
)
"""First names, every one followed by a verb in the third person: no pronoun ever depends on them."""

ITEMS: tuple[str, ...] = tuple(
    """
    pencils marbles stickers apples oranges buttons candles cookies shells stamps beads cards bricks tiles bottles cups plates
    ribbons flowers seeds books notebooks postcards badges ropes lamps nails screws tickets toys balloons magnets crayons spoons
    pears plums lemons walnuts muffins rolls pies scarves hats socks gloves bolts blocks coins envelopes brushes
    """.split()  # noqa: SIM905 - likewise
)
"""Plural things that can be counted, packed, bought, sold and given away."""

GOODS: tuple[str, ...] = (
    "backpack", "blanket", "book", "bracelet", "calendar", "chair", "clock", "cushion", "game", "jacket", "kettle", "lamp",
    "mirror", "mug", "puzzle", "racket", "scarf", "shirt", "sweater", "towel", "vase", "wallet",
)  # fmt: skip
"""Single things with a price; each takes the article "a" and a plural in "s"."""

PLACES: tuple[str, ...] = (
    "bakery", "bookshop", "factory", "farm", "garden center", "hardware store", "market", "museum shop", "school", "toy store",
    "warehouse", "workshop",
)  # fmt: skip
"""Places that make, store or sell things."""
