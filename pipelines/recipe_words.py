"""Words of recipes: which of a sentence's words carry its content, and which of them name food.

English, by two short lists and a few endings; a word that the lists lack is no food. Enough to say that two sentences
speak of the same things, not to understand them.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[a-z]+")
_VOWEL = re.compile(r"[aeiouy]")
_EMPTY = frozenset(
    """
    a about after again all also an and another any are as at away back be been before being both but by can could did
    do does done down each enough even every few first for from get go going got had has have he her here him his how
    i if in into is it its just last let like little ll lot made make making more most much my need next no not now of
    off on once one only onto or other our out over own put really same she should so some still such take than that
    the their them then there these they thing things this those through time to together too two under until up us
    use using ve very want was we well were what when where which while who will with would you your
    minute minutes second seconds hour hours bit nice okay side sides
    """.split()
)
# What is cooked with, in the singular.
_FOODS = """
    allspice almond anchovy apple apricot asparagus aubergine avocado bacon banana barley basil bean beef beetroot
    berry biscuit blueberry bouillon bread breadcrumb brisket broccoli broth buckwheat butter buttermilk cabbage
    caper caramel cardamom carrot cashew cauliflower celery cheddar cheese cherry chicken chickpea chili chilli
    chive chocolate cilantro cinnamon clam clove cocoa coconut cod coffee coriander corn cornstarch couscous crab
    cracker cranberry cream crumb cucumber cumin curry date dill duck egg eggplant fennel feta fig fish flour garlic
    gelatin ghee ginger grape gravy ham hazelnut herb honey hummus ice jalapeno jam juice kale ketchup kimchi lamb
    lard leek lemon lentil lettuce lime lobster macaroni mango maple margarine marinade marshmallow mayo mayonnaise
    meat melon milk mint mirin miso mozzarella mushroom mussel mustard noodle nutmeg oat oil okra olive onion orange
    oregano oyster pancetta paneer paprika parmesan parsley parsnip pasta pea peach peanut pear pecan pepper
    pepperoni pickle pineapple pistachio pork potato prawn prosciutto pumpkin quinoa radish raisin raspberry rice
    rosemary saffron sage salami salmon salsa salt sausage scallion scallop seaweed sesame shallot shrimp soy
    spaghetti spice spinach squash squid steak stock strawberry sugar syrup tahini tarragon tea thyme tofu tomato
    tortilla tuna turkey turmeric turnip vanilla veal vegetable vinegar walnut wasabi water wine yeast yogurt yolk
    zest zucchini
""".split()
# What foods become on the way, in the singular; not what is more often done than eaten ("fill", "roll", "top").
_PRODUCTS = """
    batter burger cake cookie custard dish dough dressing frosting glaze mixture omelette pancake paste pastry patty
    pie pizza puree salad sandwich sauce soup stew
""".split()


def stem(word: str) -> str:
    """A word without its ending, so that "onion", "onions", "chop", "chopped" and "chopping" meet; lower case."""
    if word.endswith("s") and not word.endswith(("ss", "us")):
        word = word[:-3] + "y" if word.endswith("ies") else word[:-2] if word.endswith("oes") else word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and _VOWEL.search(rest):
            is_doubled = len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "lsz"
            word = rest[:-1] if is_doubled else rest
            break
    word = word.removesuffix("e") if len(word) > 3 else word
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 else word


FOODS = frozenset(map(stem, _FOODS))
PRODUCTS = frozenset(map(stem, _PRODUCTS))


def content_words(text: str) -> frozenset[str]:
    """The stems of the words that say something: all but articles, pronouns, numbers and their like."""
    return frozenset(stem(word) for word in _WORD.findall(text.casefold()) if len(word) > 1 and word not in _EMPTY)
