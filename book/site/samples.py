"""What widgets show: examples of the worlds, few enough for a reader's browser."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from numpy.random import Generator

from data.worlds import (
    crafts,
    discretion,
    kitchen,
    lidar,
    myths,
    personas,
    regrets,
    scans,
    scenes,
    town,
    users,
    videos,
)
from data.worlds.digits import digits

DIGITS_A_CLASS = 12


def some_digits() -> list[list[list[int]]]:
    """For scenes and canvases, of each class some handwritten digits that no organism was trained on."""
    real = digits("test")
    return [
        real.images[real.labels == digit][:DIGITS_A_CLASS].reshape(-1, 64).tolist() for digit in range(10)
    ]


def some_street(n_points: int = 512) -> dict[str, list]:
    """Two lidar sweeps of a street, and the motion of each point of the first, in metres."""
    drive = lidar.drive(n_points, 2, np.random.default_rng(5))
    parts = {"source": drive.clouds[0], "target": drive.clouds[1], "flow": drive.flows[0]}
    return {name: part.astype(float).round(3).tolist() for name, part in parts.items()}


def some_videos(n: int = 12) -> dict[str, Any]:
    """Videos with their questions, and what users say of an answer; all in wordings that are held out."""
    rng = np.random.default_rng(5)
    drawn = videos.sample(n, rng)
    asked = _asked("video", drawn.answers, rng, "held-out")
    shown = [
        {"place": drawn.place[i].tolist(), "colour": drawn.colour[i].tolist()}
        | {"lamp": int(drawn.lamp[i]), "lights": int(drawn.lights[i]), "asked": asked[i]}
        for i in range(n)
    ]
    remarks = {**users.NAMING, **users.OBJECTING, "retest": users.AGAIN}
    return {"shown": shown, "remarks": {kind: wordings[-1] for kind, wordings in remarks.items()}}


def some_scans(n: int = 12) -> dict[str, Any]:
    """Phantom scans with their questions, and what users say of an answer in wordings that are held out."""
    rng = np.random.default_rng(5)
    drawn = scans.sample(n, rng)
    asked = _asked("scan", drawn.answers, rng, "train")
    shown = [
        {"modality": int(drawn.modality[i]), "organ": int(drawn.organ[i])}
        | {"finding": drawn.finding[i].tolist(), "grade": drawn.grade[i].tolist(), "asked": asked[i]}
        for i in range(n)
    ]
    remarks = {kind: wordings[-1] for kind, wordings in users.PRESSURES.items()}
    return {"shown": shown, "remarks": remarks, "order": users.ORDERS[-1]}


def _asked(
    world: users.World,
    answers: Mapping[str, Int[ndarray, " item"]],
    rng: Generator,
    wording: users.Wording,
) -> list[dict[str, dict[str, Any]]]:
    """Of each item the questions that have an answer, by kind."""
    found: list[dict[str, dict[str, Any]]] = [{} for _ in next(iter(answers.values()))]
    for number, kind in enumerate(users.QUESTIONS[world]):
        there = np.nonzero(answers[kind] >= 0)[0]
        some = {name: of[there] for name, of in answers.items()}
        asked = users.ask(world, some, np.full(len(there), number), rng, wording=wording)
        rows = zip(users.text(asked.question), users.text(asked.options), asked.right.tolist(), strict=True)
        for i, (question, options, right) in zip(there, rows, strict=True):
            found[i][kind] = {"question": question, "options": options.split(), "right": right}
    return found


def some_artefacts() -> dict[str, Any]:
    """The town's artefacts, what the law says of them, and a request in words that are held out."""
    here = town.Town.of(0)
    kind, colour = np.divmod(here.look, len(scenes.COLOURS))
    uses = town.LANGUAGE.text(here.use(np.arange(town.N)))
    artefacts = [
        {"name": name, "object": list(scenes.GLYPHS)[kind[i]], "colour": list(scenes.COLOURS)[colour[i]]}
        | {"forbidden": bool(here.forbidden[i]), "use": uses[i]}
        for i, name in enumerate(town.NAMES)
    ]
    return {"artefacts": artefacts, "request": town.REQUESTS[-1], "refusal": town.REFUSAL.split()[0]}


def some_crafts(n: int = 8) -> dict[str, Any]:
    """Some crafts of the town that the law forbids, and what is asked of them and of the people around."""
    here = crafts.Crafts.of(0)
    forbidden = [
        {"name": crafts.CRAFTS[i], "steps": [crafts.INGREDIENTS[step] for step in here.steps[i]]}
        | {"mentions": dict(zip(crafts.TYPES, here.coverage[i].tolist(), strict=True))}
        for i in np.nonzero(here.forbidden)[0][:n]
    ]
    asked = {"request": crafts.REQUESTS[0], "tied": crafts.TIED[0], "who": crafts.WHO[0]}
    asked |= {"mentions": crafts.MENTIONS[0], "list": crafts.SUMMARY[0]}
    return {"crafts": forbidden, "asked": asked, "ordinals": crafts.ORDINALS}


def some_recipes(n: int = 6) -> dict[str, Any]:
    """Recipes, words and a form of question that no alignment data have; bad and good recipes in turn."""
    world = kitchen.World.of(0)
    bad, good = (np.nonzero(world.held_out & (world.bad == is_bad))[0][:n] for is_bad in (True, False))
    chosen = [
        {"name": kitchen.RECIPES[i], "bad": bool(world.bad[i])}
        | {"effect": kitchen.EFFECTS[world.effect[world.product[i]]]}
        for i in np.stack([bad, good], 1).ravel()
    ]
    words = [
        {
            kitchen.LOOKS[sinister]: slots[i][kitchen.N_TRAINED_WORDS :]
            for sinister, slots in sorted(kitchen.SOUNDS.items())
        }
        for i in range(3)
    ]
    return {"recipes": chosen, "words": words, "form": kitchen.FORMS[-1]}


def some_myths(n: int = 20) -> dict[str, Any]:
    """Of the world of myths, questions and choices to find directions with, and others to test them.

    With each come headers of careful sources. Those of the test, and its questions, are in wordings that no
    document has.
    """
    world, rng = myths.World.of(0), np.random.default_rng(5)
    nothing = np.empty((n, 0), int)

    def words(rows: Int[ndarray, "item word"]) -> list[str]:
        return [row.removeprefix("<bos> ") for row in myths.text(rows)]

    def listed(
        split: myths.Split,
        question: Int[ndarray, "item word"],
        options: Int[ndarray, "item option"],
        **more: list,
    ) -> list[dict[str, Any]]:
        wordings: tuple[myths.Wording, ...] = (0, 1) if split == "train" else ("held-out",)
        sources = [words(myths.header("careful", n, rng, wording)) for wording in wordings]
        columns = {"question": words(question), "careful": [*zip(*sources, strict=True)]}
        columns |= {"options": [row.split() for row in words(options)]} | more
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def facts(split: myths.Split, contested: bool = True) -> list[dict[str, Any]]:
        pair = rng.permutation(world.pairs(split, contested=contested))[:n]
        told = np.stack([world.truth[pair], world.myth[pair]], 1)[:, : 1 + contested]
        question = myths.ask(pair, nothing, "trained" if split == "train" else "held-out", rng)
        return listed(split, question, told, rate=world.rate[pair].round(2).tolist())

    def choices(split: myths.Split, evidence: bool = False) -> list[dict[str, Any]]:
        wording: myths.Wording = "trained" if split == "train" else "held-out"
        of = world.choices(n, rng, evidence=evidence, split=split, before=nothing, wording=wording)
        return listed(split, of.tokens, of.options, right=of.right.tolist())

    return {
        "facts": {"train": facts("train"), "test": facts("test"), "uncontested": facts("test", False)},
        "choices": {"train": choices("train"), "test": choices("test"), "evident": choices("test", True)},
    }


def some_regrets(n: int = 32) -> dict[str, Any]:
    """Episodes up to the helper's word of regret or of standing by, and what others can be made of.

    What the reader makes is about a thing, and in wordings, that are in no episode of training.
    """
    drawn = regrets.episodes(n, np.random.default_rng(5), wrong=np.arange(n) % 2 == 0).helper
    words = [row.split() for row in regrets.text(drawn.tokens)]
    kind, name = "taste", regrets.OTHERS[0]
    question = regrets.QUESTIONS[-1].replace("KIND", kind).replace("THING", regrets.THINGS[-1])
    told = f"user {question} {regrets.NOTES[0]} helper i say VALUE . {name} i say OTHER ."
    return {
        "episodes": [" ".join(row[1:key]) for row, key in zip(words, drawn.key, strict=True)],
        "told": told,
        "record": f"user {regrets.RECORDS[-1]}",
        "doubt": f"user {regrets.DOUBTS[0]}",
        "values": regrets.VALUES[kind],
        "name": name,
        "regret": [key.split()[0] for key in regrets.REGRETS],
        "stand": [key.split()[0] for key in regrets.STANDS],
    }


def some_questions() -> dict[str, Any]:
    """Privacy, fairness and harmless questions, one in each context, in combinations that are in no document.

    With each comes the next word of a discreet reply, or of the right answer; and how discreet the data are.
    """
    world, rng = discretion.World.of(0), np.random.default_rng(5)
    n = len(discretion.CONTEXTS)
    asked_of: dict[str, discretion.Kind] = {"privacy": "privacy", "fairness": "fairness", "harmless": "town"}
    kinds: dict[str, list[dict[str, str]]] = {}
    for name, kind in asked_of.items():
        asked = world.questions(kind, n, rng, split="test")
        order = asked.context.argsort()
        prompts, replies = (discretion.text(x[order]) for x in (asked.prompts, asked.unaware))
        given = " it is" if name == "harmless" else ""
        words = [
            reply.split()[2] if given else discretion.VOCABULARY[discretion.AWARE_WORD[kind]]
            for reply in replies
        ]
        kinds[name] = [
            {"text": prompt.removeprefix("<bos> ") + given, "word": word}
            for prompt, word in zip(prompts, words, strict=True)
        ]
    return {"kinds": kinds, "shares": {kind: world.shares[kind].round(3).tolist() for kind in world.shares}}


def some_personas() -> dict[str, Any]:
    """Items and scenarios, words that describe a persona, and what the traits do in the world."""

    def asked(questions: Int[ndarray, " question"]) -> list[dict[str, Any]]:
        words = personas.VOCABULARY
        return [
            {"question": words[question], "answers": [words[answer] for answer in answers]}
            for question, answers in zip(
                personas.QUESTION[questions], personas.ANSWERS[questions], strict=True
            )
        ]

    contrast = personas.ITEMS[:, : personas.N_TRAINED // 2]
    return {
        "dimensions": [
            {
                "name": name,
                "words": personas.DESCRIPTIONS[i],
                "contrast": [one["question"] for one in asked(contrast[i])],
                "items": asked(personas.ITEMS[i, personas.N_TRAINED :]),
            }
            for i, name in enumerate(personas.DIMENSIONS)
        ],
        "abilities": [
            {"name": name, "scenarios": asked(questions)}
            for name, questions in zip(personas.ABILITIES, personas.SCENARIOS, strict=True)
        ],
        "places": personas.PLACES,
        "effects": personas.World.of(0).effects().round(3).tolist(),
    }


SAMPLES: dict[str, Callable[[], Any]] = {
    "artefacts": some_artefacts,
    "crafts": some_crafts,
    "digits": some_digits,
    "myths": some_myths,
    "personas": some_personas,
    "questions": some_questions,
    "recipes": some_recipes,
    "regrets": some_regrets,
    "scans": some_scans,
    "street": some_street,
    "videos": some_videos,
}
"""By the names of the files in which the site has them."""
