"""What is cooked, said and shown: recipes composed from a seed, without a pixel or a sample.

A recipe is a list of shots. Most show one step, spoken as an imperative sentence; a few are chat, which is no action.
Each shot names its scene (render.SCENES), its backdrop and its things, and the caption says what will be drawn.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Food:
    """How a food looks: outside, inside, and its shape.

    Shapes: round, long, block, leaf (what can be cut), grain, strand, flat, yolk, powder, liquid.
    """

    skin: RGB
    flesh: RGB
    shape: str


@dataclass(frozen=True)
class Backdrop:
    """What is behind or under the things: its name in captions, its pattern (render.PATTERNS) and its colour."""

    name: str
    pattern: str
    color: RGB


@dataclass(frozen=True)
class Shot:
    """One shot of a recipe. `action` is None where the sentence is chat."""

    scene: str
    sentence: str
    action: str | None
    caption: str
    foods: tuple[str, ...] = ()
    vessel: str = "white"  # a name in COLORS
    backdrop: Backdrop = Backdrop("oak worktop", "wood", (190, 140, 90))


@dataclass(frozen=True)
class Recipe:
    """A dish in one kitchen, shot by shot."""

    title: str
    topic: str
    shots: tuple[Shot, ...]


MAX_STEPS = 9  # as many as every dish has

FOODS: dict[str, Food] = {
    "carrots": Food((232, 120, 38), (246, 156, 72), "long"),
    "cucumbers": Food((60, 120, 50), (205, 228, 160), "long"),
    "celery": Food((140, 185, 80), (200, 225, 150), "long"),
    "bananas": Food((240, 208, 70), (250, 236, 180), "long"),
    "sausages": Food((150, 70, 48), (205, 120, 95), "long"),
    "eggplants": Food((70, 38, 84), (226, 220, 180), "long"),
    "green beans": Food((70, 140, 55), (130, 180, 90), "long"),
    "onions": Food((205, 150, 80), (246, 240, 224), "round"),
    "red onions": Food((140, 45, 88), (232, 205, 222), "round"),
    "potatoes": Food((186, 146, 92), (242, 224, 160), "round"),
    "sweet potatoes": Food((176, 88, 62), (238, 150, 70), "round"),
    "tomatoes": Food((208, 48, 36), (230, 96, 76), "round"),
    "red peppers": Food((200, 36, 32), (226, 80, 66), "round"),
    "yellow peppers": Food((238, 190, 40), (246, 214, 110), "round"),
    "green peppers": Food((62, 132, 50), (150, 196, 110), "round"),
    "mushrooms": Food((178, 148, 118), (236, 224, 204), "round"),
    "apples": Food((190, 40, 44), (246, 238, 200), "round"),
    "pears": Food((186, 196, 84), (244, 240, 206), "round"),
    "peaches": Food((240, 156, 92), (250, 200, 110), "round"),
    "lemons": Food((244, 214, 60), (252, 240, 160), "round"),
    "oranges": Food((242, 146, 34), (250, 190, 90), "round"),
    "strawberries": Food((206, 34, 50), (236, 120, 116), "round"),
    "blueberries": Food((62, 74, 132), (96, 100, 160), "grain"),
    "cherries": Food((140, 20, 40), (176, 50, 66), "round"),
    "olives": Food((58, 62, 40), (92, 98, 60), "round"),
    "garlic": Food((238, 230, 214), (248, 240, 214), "round"),
    "pumpkin": Food((226, 124, 34), (246, 176, 70), "round"),
    "cabbage": Food((150, 192, 112), (214, 230, 176), "round"),
    "cheese": Food((244, 196, 76), (250, 214, 112), "block"),
    "tofu": Food((240, 232, 210), (248, 244, 228), "block"),
    "chicken": Food((232, 190, 160), (244, 214, 190), "block"),
    "bacon": Food((176, 72, 66), (232, 170, 150), "block"),
    "butter": Food((246, 222, 130), (252, 234, 160), "block"),
    "bread": Food((176, 116, 62), (242, 216, 166), "block"),
    "chocolate": Food((88, 52, 34), (112, 68, 46), "block"),
    "ham": Food((226, 140, 136), (240, 172, 166), "block"),
    "beef": Food((140, 50, 46), (176, 76, 70), "block"),
    "salmon": Food((238, 132, 96), (246, 164, 130), "block"),
    "spinach": Food((44, 110, 48), (80, 146, 70), "leaf"),
    "lettuce": Food((120, 178, 66), (170, 208, 110), "leaf"),
    "basil": Food((52, 128, 46), (86, 156, 70), "leaf"),
    "parsley": Food((60, 136, 52), (92, 164, 78), "leaf"),
    "mint": Food((70, 160, 100), (110, 186, 130), "leaf"),
    "coriander": Food((76, 146, 60), (112, 172, 86), "leaf"),
    "sugar": Food((246, 244, 238), (250, 250, 246), "powder"),
    "salt": Food((244, 244, 246), (250, 250, 250), "powder"),
    "black pepper": Food((50, 44, 40), (70, 62, 56), "powder"),
    "flour": Food((246, 240, 228), (250, 246, 238), "powder"),
    "cinnamon": Food((140, 84, 46), (160, 102, 60), "powder"),
    "paprika": Food((186, 60, 28), (204, 82, 44), "powder"),
    "curry powder": Food((214, 156, 40), (226, 172, 64), "powder"),
    "sesame seeds": Food((236, 218, 176), (242, 228, 194), "powder"),
    "walnuts": Food((160, 112, 70), (190, 142, 98), "grain"),
    "almonds": Food((182, 124, 78), (214, 168, 124), "grain"),
    "chocolate chips": Food((84, 48, 32), (106, 64, 44), "grain"),
    "oats": Food((222, 196, 150), (232, 210, 170), "grain"),
    "raisins": Food((78, 44, 48), (100, 60, 60), "grain"),
    "rice": Food((246, 242, 230), (250, 248, 240), "grain"),
    "pasta": Food((238, 206, 120), (246, 220, 150), "strand"),
    "noodles": Food((236, 212, 140), (246, 226, 166), "strand"),
    "beans": Food((150, 56, 48), (176, 84, 70), "grain"),
    "lentils": Food((190, 110, 60), (206, 132, 84), "grain"),
    "corn": Food((246, 208, 70), (250, 222, 110), "grain"),
    "peas": Food((104, 168, 66), (136, 190, 96), "grain"),
    "eggs": Food((226, 180, 140), (250, 196, 50), "yolk"),
    "milk": Food((250, 248, 240), (250, 248, 240), "liquid"),
    "cream": Food((250, 240, 216), (250, 240, 216), "liquid"),
    "water": Food((196, 214, 222), (206, 222, 228), "liquid"),
    "vegetable stock": Food((206, 156, 70), (214, 168, 84), "liquid"),
    "chicken stock": Food((222, 180, 96), (228, 190, 110), "liquid"),
    "coconut milk": Food((246, 242, 232), (246, 242, 232), "liquid"),
    "olive oil": Food((206, 180, 50), (214, 190, 70), "liquid"),
    "orange juice": Food((246, 164, 40), (248, 176, 60), "liquid"),
    "apple juice": Food((226, 180, 80), (232, 192, 100), "liquid"),
    "yogurt": Food((248, 244, 238), (248, 244, 238), "liquid"),
    "honey": Food((220, 148, 30), (230, 164, 50), "liquid"),
    "maple syrup": Food((160, 82, 24), (176, 98, 36), "liquid"),
    "vinegar": Food((120, 50, 44), (140, 64, 56), "liquid"),
    "tomato sauce": Food((196, 48, 30), (206, 62, 40), "liquid"),
    "pesto": Food((96, 132, 50), (112, 148, 62), "liquid"),
    "cream cheese": Food((248, 240, 224), (250, 244, 232), "liquid"),
    "strawberry jam": Food((170, 24, 44), (186, 40, 58), "liquid"),
    "batter": Food((246, 224, 164), (246, 224, 164), "liquid"),
    "dough": Food((240, 220, 178), (244, 228, 192), "round"),
    "cookies": Food((206, 152, 90), (216, 166, 106), "round"),
    "pancakes": Food((214, 150, 76), (240, 206, 140), "flat"),
    "muffins": Food((200, 140, 80), (216, 160, 100), "round"),
    "pizza": Food((214, 150, 70), (236, 190, 90), "flat"),
    "flatbread": Food((226, 180, 116), (238, 202, 146), "flat"),
    "omelette": Food((246, 208, 84), (250, 220, 110), "flat"),
    "soup": Food((222, 140, 52), (226, 150, 66), "liquid"),
    "salad": Food((120, 178, 66), (170, 208, 110), "leaf"),
    "curry": Food((206, 130, 40), (214, 142, 56), "block"),
    "crumble": Food((204, 150, 92), (214, 164, 108), "grain"),
    "vegetables": Food((216, 120, 50), (226, 160, 80), "round"),
    "smoothie": Food((206, 110, 150), (216, 126, 164), "liquid"),
}

COLORS: dict[str, RGB] = {
    "white": (240, 238, 232),
    "red": (184, 44, 40),
    "blue": (52, 92, 158),
    "green": (70, 124, 84),
    "yellow": (232, 184, 60),
    "black": (48, 48, 52),
    "copper": (190, 110, 66),
    "steel": (172, 178, 184),
    "pink": (226, 150, 158),
    "turquoise": (64, 160, 160),
}

_PAINTS: dict[str, RGB] = {
    "cream": (232, 220, 192),
    "white": (232, 232, 228),
    "sage green": (146, 168, 136),
    "navy blue": (38, 54, 92),
    "terracotta": (190, 100, 70),
    "mustard": (206, 160, 62),
    "teal": (42, 112, 114),
    "charcoal": (62, 64, 70),
    "rose": (216, 164, 160),
    "sky blue": (150, 190, 214),
    "burgundy": (106, 34, 46),
    "olive": (112, 116, 64),
}
_WALLS = {"tiles": "tiled wall", "bricks": "brick wall", "planks": "panelled wall", "plaster": "painted wall"}
_WORKTOPS = (
    Backdrop("pale oak worktop", "wood", (206, 166, 116)),
    Backdrop("walnut worktop", "wood", (112, 72, 48)),
    Backdrop("cherry wood table", "wood", (156, 84, 52)),
    Backdrop("white marble worktop", "marble", (232, 230, 226)),
    Backdrop("green marble worktop", "marble", (70, 112, 92)),
    Backdrop("dark slate worktop", "stone", (66, 70, 78)),
    Backdrop("grey granite worktop", "stone", (150, 150, 152)),
    Backdrop("sandstone worktop", "stone", (208, 180, 140)),
    Backdrop("blue checked tablecloth", "cloth", (84, 120, 176)),
    Backdrop("red checked tablecloth", "cloth", (196, 72, 66)),
    Backdrop("yellow tablecloth", "cloth", (236, 204, 110)),
)
_SEEN_FROM_ABOVE = frozenset({"chop", "whisk", "fry", "roll", "plate", "spread"})

_GREETINGS = (
    "Welcome back to my kitchen.",
    "Hello everyone, and welcome to my kitchen.",
    "Hi there, it is so nice to see you again.",
    "Good morning, my friends, and thank you for watching.",
    "Hello again, I hope you are all very hungry.",
)
_ASIDES = (
    "My grandmother taught me this when I was a child.",
    "It already smells wonderful in here.",
    "This is my favorite part of the whole recipe.",
    "My children always ask me for this one.",
    "I could eat this every day of the week.",
)
_FAREWELLS = (
    "That looks delicious, and I hope you like it.",
    "Thank you for watching, and see you next time.",
    "That is all for today, and I will see you soon.",
    "I am so happy with the way this turned out.",
)
_LEADS = ("Now", "Next,", "Then", "After that,")


def compose(seed: int, index: int, *, min_steps: int, max_steps: int) -> Recipe:
    """The recipe of video `index`; the same for the same arguments, on every machine."""
    rng = Random(f"{seed}/{index}")
    topics = sorted(_DISHES)
    Random(str(seed)).shuffle(topics)
    topic = topics[index % len(topics)]  # neighbours cook different dishes
    title, draft = _DISHES[topic](rng)
    steps = _shortened(rng, draft, rng.randint(min_steps, max_steps))
    shots = [_chat(rng, rng.choice(_GREETINGS)), *_spoken(rng, steps)]
    # Fewer steps, more chat: the videos are of about one length.
    places = range(2, len(shots))
    count = min(2, max_steps - len(steps), len(places))
    asides = rng.sample(_ASIDES, count)
    for place, aside in zip(sorted(rng.sample(places, count), reverse=True), asides, strict=True):
        shots.insert(place, _chat(rng, aside))
    shots.append(_chat(rng, rng.choice(_FAREWELLS)))
    return Recipe(title=f"How to make {title}", topic=topic, shots=tuple(_furnished(rng, shots)))


def _chat(rng: Random, sentence: str) -> Shot:
    color = rng.choice(["red", "blue", "green", "yellow", "copper", "turquoise"])
    fruit = rng.choice(["apples", "lemons", "oranges", "pears", "tomatoes"])
    caption = f"A steaming {color} kettle and a bowl of {fruit} stand on the counter"
    return Shot("counter", sentence, None, caption, (fruit,), color)


def _shortened(rng: Random, steps: list[Shot], count: int) -> list[Shot]:
    """`count` of the steps, in their order; the last one, the serving, stays."""
    assert len(steps) >= MAX_STEPS, steps[0]
    kept = sorted(rng.sample(range(len(steps) - 1), count - 1))
    return [*(steps[index] for index in kept), steps[-1]]


def _spoken(rng: Random, steps: list[Shot]) -> list[Shot]:
    """With a lead-in before about half of the sentences, and before every short one: it must fill its shot."""
    spoken = []
    for position, step in enumerate(steps):
        lead = "First," if position == 0 else "Finally," if position == len(steps) - 1 else rng.choice(_LEADS)
        if rng.random() < 0.5 or len(step.sentence) < 46:
            step = replace(step, sentence=f"{lead} {step.sentence[0].lower()}{step.sentence[1:]}")
        spoken.append(step)
    return spoken


def _furnished(rng: Random, shots: list[Shot]) -> list[Shot]:
    """With one kitchen's backdrops, each unlike the one before: a cut must be one to the eye."""
    walls = [
        Backdrop(f"{paint} {_WALLS[pattern]}", pattern, _PAINTS[paint])
        for paint, pattern in zip(rng.sample(sorted(_PAINTS), 4), rng.sample(sorted(_WALLS), 4), strict=True)
    ]
    worktops = rng.sample(_WORKTOPS, 5)
    furnished: list[Shot] = []
    for shot in shots:
        above = shot.scene in _SEEN_FROM_ABOVE
        choices = worktops if above else walls
        if furnished:
            before = furnished[-1].backdrop.color
            choices = sorted(choices, key=lambda choice: -_unlikeness(choice.color, before))[:2]
        backdrop = rng.choice(choices)
        place = f", seen from above on {_a(backdrop.name)}." if above else f", in front of {_a(backdrop.name)}."
        furnished.append(replace(shot, backdrop=backdrop, caption=shot.caption + place))
    return furnished


def _unlikeness(one: RGB, other: RGB) -> float:
    """Mean difference of hue, saturation and value: what a content detector measures, 0 to 255."""
    (h, s, v), (g, t, w) = (colorsys.rgb_to_hsv(*(channel / 255 for channel in color)) for color in (one, other))
    return (180 * abs(h - g) + 255 * abs(s - t) + 255 * abs(v - w)) / 3


# --- steps: each says what is done in the imperative, and what is drawn -----------------------------------------------


def _step(scene: str, sentence: str, caption: str, foods: tuple[str, ...], vessel: str = "white") -> Shot:
    assert all(food in FOODS for food in foods) and vessel in COLORS, (foods, vessel)
    return Shot(scene, sentence + ".", sentence, caption, foods, vessel)


def _some(rng: Random, food: str) -> str:
    """The food with an amount: "three carrots", "some cheese"."""
    if food.endswith("s") and food not in ("oats", "cookies"):
        return f"{rng.choice(['two large', 'three', 'four small', 'a few', 'some fresh'])} {food}"
    return (
        f"{rng.choice(['some fresh', 'a large piece of', 'plenty of'])} {food}" if food != "garlic" else "some garlic"
    )


def _one(food: str) -> str:
    """The name of one of them: "cherry" of "cherries"; names of what is not counted stay."""
    for plural, singular in (("ies", "y"), ("oes", "o"), ("ches", "ch"), ("s", "")):
        if food.endswith(plural):
            return food.removesuffix(plural) + singular
    return food


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _chop(rng: Random, food: str) -> Shot:
    if FOODS[food].shape == "leaf":
        sentence = rng.choice(
            [
                f"Chop a handful of fresh {food} with a large knife",
                f"Roughly cut a bunch of {food} on the wooden board",
            ]
        )
    else:
        verb = rng.choice(["Chop", "Cut", "Slice"])
        pieces = rng.choice(["into small cubes", "into thin slices", "into large chunks", "into small even pieces"])
        if verb == "Slice":
            pieces = rng.choice(["very thinly", "into thick rounds", "with a sharp knife"])
        tail = rng.choice(["", " on the cutting board", " on a wooden board"])
        sentence = f"{verb} {_some(rng, food)} {pieces}{tail}"
    return _step("chop", sentence, f"A knife cuts {food} on a wooden board", (food,))


def _whisk(rng: Random, foods: tuple[str, ...], what: str) -> Shot:
    color = rng.choice(sorted(COLORS))
    verb = rng.choice(["Whisk", "Beat", "Mix"])
    end = rng.choice(
        ["until the mixture is smooth", "in a large bowl", f"in a {color} bowl", "with a whisk until it is fluffy"]
    )
    caption = f"A whisk circles in a {color} bowl of {' and '.join(foods)}"
    return _step("whisk", f"{verb} {what} together {end}", caption, foods, color)


def _pour(rng: Random, food: str, into: str) -> Shot:
    color = rng.choice(sorted(COLORS))
    amount = rng.choice(["a cup of", "two cups of", "half a cup of", "the", "a little"])
    if food in ("honey", "maple syrup", "vinegar", "olive oil"):
        amount = rng.choice(["two spoons of", "a little", "some"])
    manner = rng.choice(["Pour", "Slowly pour", "Carefully pour", "Add"])
    vessel = rng.choice(["", f"{color} ", "large "]) + into
    sentence = f"{manner} {amount} {food} into the {vessel}"
    if manner == "Add":
        sentence = f"Add {amount} {food} to the {vessel} and mix it in"
    return _step("pour", sentence, f"A glass jug pours {food} into a {color} {into}", (food,), color)


def _sprinkle(rng: Random, food: str, over: str) -> Shot:
    color = rng.choice(["white", "blue", "green", "turquoise", "pink", "black"])
    verb, amount = rng.choice([("Sprinkle", "some"), ("Sprinkle", "plenty of"), ("Sprinkle", "a handful of")])
    if food in ("salt", "black pepper", "cinnamon", "paprika", "curry powder"):
        verb, amount = rng.choice([("Season with", "a pinch of"), ("Sprinkle", "a spoon of"), ("Add", "a pinch of")])
    joint = "over" if verb != "Add" else "to"
    sentence = f"{verb} {amount} {food} {joint} the {over}"
    if verb == "Season with":
        sentence = f"Season the {over} with {amount} {food}"
    caption = f"A shaker sprinkles {food} over a {color} dish of {over}"
    return _step("sprinkle", sentence, caption, (food, over), color)


def _fry(rng: Random, food: str) -> Shot:
    fat = rng.choice(["olive oil", "butter"])
    sentence = rng.choice(
        [
            f"Fry the {food} in {fat} until golden brown",
            f"Cook the {food} in a hot pan with a little {fat}",
            f"Stir the {food} in the pan for five minutes",
            f"Brown the {food} on high heat for three minutes",
        ]
    )
    return _step("fry", sentence, f"A wooden spatula stirs {food} in a black frying pan", (food,), "black")


def _flip(rng: Random, food: str) -> Shot:
    singular = _one(food)
    sentence = rng.choice(
        [
            f"Flip the {singular} in the pan when the edges are golden",
            f"Toss the {singular} in the air and cook the other side",
            f"Turn the {singular} over and cook it for two minutes",
        ]
    )
    return _step(
        "flip", sentence, f"{_a(singular).capitalize()} is flipped in the air above a frying pan", (food,), "black"
    )


def _simmer(rng: Random, food: str, what: str) -> Shot:
    color = rng.choice(["red", "blue", "green", "steel", "copper", "yellow", "turquoise"])
    minutes = rng.choice(["ten", "fifteen", "twenty", "thirty"])
    sentence = rng.choice(
        [
            f"Simmer the {what} for {minutes} minutes and stir it often",
            f"Boil the {what} in a large pot for {minutes} minutes",
            f"Stir the {what} with a wooden spoon until it boils",
            f"Cook the {what} on low heat for {minutes} minutes",
        ]
    )
    return _step("simmer", sentence, f"A wooden spoon stirs {food} in a steaming {color} pot", (food,), color)


def _bake(rng: Random, food: str, what: str) -> Shot:
    minutes = rng.choice(["ten", "twelve", "twenty", "twenty five", "forty"])
    sentence = rng.choice(
        [
            f"Bake the {what} in a hot oven for {minutes} minutes",
            f"Slide the tray of {what} into the hot oven",
            f"Put the {what} into the oven and bake for {minutes} minutes",
        ]
    )
    return _step("bake", sentence, f"A tray of {food} slides into a glowing oven", (food,), "steel")


def _roll(rng: Random, what: str) -> Shot:
    sentence = rng.choice(
        [
            f"Roll out the {what} with a rolling pin",
            f"Roll the {what} into a thin circle on the table",
            f"Flatten the {what} with a rolling pin until it is thin",
        ]
    )
    return _step("roll", sentence, "A rolling pin flattens a round of dough", ("dough",))


def _plate(rng: Random, food: str, what: str) -> Shot:
    color = rng.choice(["white", "blue", "green", "yellow", "pink", "black", "turquoise"])
    herb = rng.choice(["basil", "parsley", "mint"])
    sentence = rng.choice(
        [
            f"Arrange the {what} on a {color} plate and serve",
            f"Serve the {what} on a plate with some fresh {herb}",
            f"Place the {what} on a large {color} plate",
        ]
    )
    return _step("plate", sentence, f"Pieces of {food} and {herb} leaves fill a {color} plate", (food, herb), color)


def _blend(rng: Random, food: str, what: str) -> Shot:
    sentence = rng.choice(
        [
            f"Blend the {what} until it is smooth and creamy",
            f"Put the {what} into the blender and mix on high speed",
        ]
    )
    return _step("blend", sentence, f"{food.capitalize()} swirls in a running blender", (food,), "steel")


def _grate(rng: Random, food: str, over: str) -> Shot:
    color = rng.choice(["white", "blue", "green", "pink", "turquoise"])
    sentence = rng.choice(
        [
            f"Grate {_some(rng, food)} into a {color} bowl",
            f"Grate the {food} over the {over} with a metal grater",
        ]
    )
    return _step("grate", sentence, f"Grated {food} falls from a metal grater into a {color} bowl", (food,), color)


def _spread(rng: Random, food: str, base: str, what: str) -> Shot:
    sentence = rng.choice(
        [
            f"Spread {rng.choice(['a thin layer of', 'two spoons of', 'some'])} {food} over the {what}",
            f"Cover the {what} with {food} using the back of a spoon",
        ]
    )
    return _step("spread", sentence, f"A spoon spreads {food} over a round {base}", (food, base))


def _crack(rng: Random) -> Shot:
    color = rng.choice(sorted(COLORS))
    count = rng.choice(["two", "three", "four", "six"])
    sentence = rng.choice([f"Crack {count} eggs into a {color} bowl", f"Break {count} fresh eggs into a large bowl"])
    return _step("crack", sentence, f"An egg breaks above a {color} bowl and its yolk falls", ("eggs",), color)


# --- dishes: a title and at least MAX_STEPS steps in order, serving last ----------------------------------------------

Draft = tuple[str, list[Shot]]


def _shuffled(rng: Random, steps: list[Shot]) -> list[Shot]:
    rng.shuffle(steps)
    return steps


def _soup(rng: Random) -> Draft:
    main = rng.choice(["carrots", "tomatoes", "potatoes", "pumpkin", "mushrooms", "sweet potatoes", "lentils"])
    second = rng.choice(["onions", "celery", "red peppers", "red onions"])
    third = rng.choice(["garlic", "cabbage", "green beans", "bacon", "sausages"])
    stock = rng.choice(["vegetable stock", "chicken stock", "water"])
    first = [_chop(rng, food) for food in (main, second, third) if food != "lentils"]
    return f"{_one(main)} soup", [
        *_shuffled(rng, first),
        _fry(rng, second),
        _sprinkle(rng, rng.choice(["salt", "black pepper", "paprika", "curry powder"]), second),
        _pour(rng, stock, "pot"),
        _simmer(rng, "soup", "soup"),
        _blend(rng, "soup", "soup"),
        _pour(rng, rng.choice(["cream", "coconut milk", "milk"]), "pot"),
        _sprinkle(rng, rng.choice(["parsley", "basil", "coriander"]), "soup"),
        _plate(rng, "bread", "warm bread"),
    ]


def _salad(rng: Random) -> Draft:
    green = rng.choice(["lettuce", "spinach", "cabbage"])
    others = rng.sample(["tomatoes", "cucumbers", "red onions", "yellow peppers", "carrots", "apples", "celery"], 3)
    protein = rng.choice(["chicken", "tofu", "bacon", "salmon"])
    return f"{rng.choice(['summer', 'crunchy', 'green', protein])} salad", [
        *_shuffled(rng, [_chop(rng, food) for food in (green, *others)]),
        _fry(rng, protein),
        _whisk(rng, ("olive oil", "vinegar"), "the olive oil and vinegar"),
        _pour(rng, "olive oil", "bowl"),
        _grate(rng, rng.choice(["cheese", "carrots"]), "salad"),
        _sprinkle(rng, rng.choice(["walnuts", "olives", "sesame seeds", "corn", "almonds"]), "salad"),
        _plate(rng, "salad", "salad"),
    ]


def _pancakes(rng: Random) -> Draft:
    topping = rng.choice(["strawberries", "bananas", "blueberries", "peaches", "cherries"])
    spice = rng.choice(["cinnamon", "sugar"])
    return f"{_one(topping)} pancakes", [
        _crack(rng),
        _sprinkle(rng, "flour", "eggs"),
        _pour(rng, rng.choice(["milk", "cream", "coconut milk"]), "bowl"),
        _whisk(rng, ("flour", "eggs"), rng.choice(["the flour and eggs", "the milk and eggs"])),
        _pour(rng, "batter", "pan"),
        _flip(rng, "pancakes"),
        _chop(rng, topping),
        _sprinkle(rng, spice, "pancakes"),
        _pour(rng, rng.choice(["maple syrup", "honey"]), "bowl"),
        _plate(rng, "pancakes", f"pancakes with {topping}"),
    ]


def _pizza(rng: Random) -> Draft:
    toppings = rng.sample(["mushrooms", "green peppers", "ham", "tomatoes", "onions", "sausages", "red peppers"], 2)
    return f"{_one(toppings[0])} pizza", [
        _whisk(rng, ("flour", "water"), "the flour and warm water"),
        _sprinkle(rng, "salt", "flour"),
        _roll(rng, "pizza dough"),
        _spread(rng, rng.choice(["tomato sauce", "pesto"]), "dough", "pizza base"),
        *_shuffled(rng, [_chop(rng, topping) for topping in toppings]),
        _grate(rng, "cheese", "pizza"),
        _sprinkle(rng, rng.choice(["olives", "corn", "basil"]), "pizza"),
        _bake(rng, "pizza", "pizza"),
        _pour(rng, "olive oil", "bowl"),
        _plate(rng, "pizza", "pizza"),
    ]


def _pasta(rng: Random) -> Draft:
    main = rng.choice(["tomatoes", "mushrooms", "eggplants", "sausages", "bacon"])
    noodle = rng.choice(["pasta", "noodles"])
    return f"{noodle} with {main}", [
        _pour(rng, "water", "pot"),
        _sprinkle(rng, "salt", "pasta"),
        _simmer(rng, noodle, noodle),
        *_shuffled(rng, [_chop(rng, main), _chop(rng, rng.choice(["garlic", "onions", "red onions"]))]),
        _fry(rng, main),
        _pour(rng, rng.choice(["cream", "tomato sauce", "olive oil"]), "pan"),
        _simmer(rng, "tomato sauce", "sauce"),
        _grate(rng, "cheese", noodle),
        _chop(rng, rng.choice(["basil", "parsley"])),
        _plate(rng, noodle, noodle),
    ]


def _curry(rng: Random) -> Draft:
    main = rng.choice(["chicken", "tofu", "potatoes", "beef", "sweet potatoes", "eggplants"])
    other = rng.choice(["red peppers", "green beans", "carrots", "peas", "spinach"])
    return f"{_one(main)} curry", [
        _chop(rng, main),
        _chop(rng, rng.choice(["onions", "garlic", "red onions"])),
        _fry(rng, main),
        _sprinkle(rng, rng.choice(["curry powder", "paprika"]), main),
        _chop(rng, other) if other != "peas" else _sprinkle(rng, "peas", "curry"),
        _pour(rng, "coconut milk", "pot"),
        _simmer(rng, "curry", "curry"),
        _simmer(rng, "rice", "rice"),
        _sprinkle(rng, rng.choice(["coriander", "almonds", "raisins"]), "curry"),
        _plate(rng, "rice", "rice and curry"),
    ]


def _omelette(rng: Random) -> Draft:
    filling = rng.sample(["mushrooms", "tomatoes", "ham", "spinach", "red peppers", "onions"], 2)
    return f"an omelette with {filling[0]}", [
        *_shuffled(rng, [_chop(rng, food) for food in filling]),
        _crack(rng),
        _pour(rng, rng.choice(["milk", "cream"]), "bowl"),
        _sprinkle(rng, rng.choice(["salt", "black pepper"]), "eggs"),
        _whisk(rng, ("eggs", "milk"), "the eggs and milk"),
        _fry(rng, filling[0]),
        _grate(rng, "cheese", "omelette"),
        _flip(rng, "omelette"),
        _plate(rng, "omelette", "omelette"),
    ]


def _cookies(rng: Random) -> Draft:
    chips = rng.choice(["chocolate chips", "raisins", "walnuts", "almonds"])
    return f"{_one(chips).removesuffix(' chip')} cookies", [
        _whisk(rng, ("butter", "sugar"), "the butter and sugar"),
        _crack(rng),
        _sprinkle(rng, "flour", "butter"),
        _chop(rng, "chocolate") if chips == "chocolate chips" else _sprinkle(rng, "cinnamon", "dough"),
        _pour(rng, rng.choice(["honey", "milk", "maple syrup"]), "bowl"),
        _sprinkle(rng, chips, "dough"),
        _roll(rng, "cookie dough"),
        _sprinkle(rng, "sugar", "cookies"),
        _bake(rng, "cookies", "cookies"),
        _plate(rng, "cookies", "warm cookies"),
    ]


def _flatbread(rng: Random) -> Draft:
    herb = rng.choice(["garlic", "parsley", "coriander", "basil"])
    return f"{herb} flatbread", [
        _sprinkle(rng, "salt", "flour"),
        _pour(rng, rng.choice(["water", "yogurt", "milk"]), "bowl"),
        _whisk(rng, ("flour", "yogurt"), "the flour and yogurt"),
        _roll(rng, "bread dough"),
        _chop(rng, herb),
        _spread(rng, rng.choice(["pesto", "cream cheese", "olive oil"]), "flatbread", "flat bread"),
        _flip(rng, "flatbread"),
        _sprinkle(rng, rng.choice(["sesame seeds", "black pepper", "salt"]), "flatbread"),
        _bake(rng, "flatbread", "flat bread"),
        _plate(rng, "flatbread", "flat bread"),
    ]


def _smoothie(rng: Random) -> Draft:
    fruits = rng.sample(["strawberries", "bananas", "peaches", "apples", "pears", "oranges", "cherries"], 3)
    return f"{_a(_one(fruits[0]))} smoothie", [
        *_shuffled(rng, [_chop(rng, fruit) for fruit in fruits]),
        _pour(rng, rng.choice(["orange juice", "apple juice"]), "bowl"),
        _pour(rng, rng.choice(["yogurt", "milk", "coconut milk"]), "bowl"),
        _sprinkle(rng, rng.choice(["oats", "almonds", "cinnamon"]), "yogurt"),
        _pour(rng, "honey", "bowl"),
        _blend(rng, "smoothie", rng.choice(["fruit", "smoothie"])),
        _sprinkle(rng, rng.choice(["blueberries", "mint"]), "smoothie"),
        _plate(rng, fruits[0], f"sliced {fruits[0]}"),
    ]


def _roast(rng: Random) -> Draft:
    roots = rng.sample(["potatoes", "carrots", "sweet potatoes", "pumpkin", "red onions", "eggplants"], 3)
    return f"roasted {roots[0]}", [
        *_shuffled(rng, [_chop(rng, food) for food in roots]),
        _pour(rng, "olive oil", "bowl"),
        _sprinkle(rng, rng.choice(["salt", "paprika"]), "vegetables"),
        _sprinkle(rng, "black pepper", "vegetables"),
        _bake(rng, "vegetables", "vegetables"),
        _whisk(rng, ("yogurt", "honey"), "the yogurt and honey"),
        _chop(rng, rng.choice(["parsley", "mint"])),
        _plate(rng, "vegetables", "roasted vegetables"),
    ]


def _muffins(rng: Random) -> Draft:
    fruit = rng.choice(["blueberries", "apples", "bananas", "cherries", "raisins"])
    return f"{_one(fruit)} muffins", [
        _crack(rng),
        _whisk(rng, ("eggs", "sugar"), "the eggs and sugar"),
        _sprinkle(rng, "flour", "eggs"),
        _pour(rng, rng.choice(["milk", "yogurt"]), "bowl"),
        _chop(rng, fruit) if fruit in ("apples", "bananas", "cherries") else _sprinkle(rng, fruit, "batter"),
        _sprinkle(rng, "cinnamon", "batter"),
        _pour(rng, "batter", "dish"),
        _bake(rng, "muffins", "muffins"),
        _sprinkle(rng, "sugar", "muffins"),
        _plate(rng, "muffins", "warm muffins"),
    ]


def _crumble(rng: Random) -> Draft:
    fruit = rng.choice(["apples", "pears", "peaches", "cherries", "strawberries"])
    return f"{_one(fruit)} crumble", [
        _chop(rng, fruit),
        _sprinkle(rng, "sugar", fruit),
        _simmer(rng, fruit, "fruit"),
        _chop(rng, rng.choice(["butter", "walnuts", "almonds"])),
        _whisk(rng, ("flour", "butter"), "the flour and butter"),
        _sprinkle(rng, rng.choice(["oats", "cinnamon"]), "crumble"),
        _pour(rng, rng.choice(["honey", "maple syrup"]), "dish"),
        _bake(rng, "crumble", "crumble"),
        _pour(rng, "cream", "bowl"),
        _plate(rng, "crumble", "crumble"),
    ]


def _stir_fry(rng: Random) -> Draft:
    protein = rng.choice(["chicken", "beef", "tofu", "salmon"])
    greens = rng.sample(["green peppers", "carrots", "green beans", "mushrooms", "cabbage", "red onions"], 3)
    return f"{protein} stir fry", [
        *_shuffled(rng, [_chop(rng, food) for food in (protein, *greens)]),
        _pour(rng, "olive oil", "pan"),
        _fry(rng, protein),
        _fry(rng, greens[0]),
        _simmer(rng, rng.choice(["noodles", "rice"]), rng.choice(["noodles", "rice"])),
        _sprinkle(rng, rng.choice(["sesame seeds", "coriander", "black pepper"]), "vegetables"),
        _plate(rng, "vegetables", f"{protein} and vegetables"),
    ]


_DISHES: dict[str, Callable[[Random], Draft]] = {
    "crumble": _crumble,
    "cookies": _cookies,
    "curry": _curry,
    "flatbread": _flatbread,
    "muffins": _muffins,
    "omelette": _omelette,
    "pancakes": _pancakes,
    "pasta": _pasta,
    "pizza": _pizza,
    "roast": _roast,
    "salad": _salad,
    "smoothie": _smoothie,
    "soup": _soup,
    "stir fry": _stir_fry,
}
