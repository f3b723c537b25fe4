"""The built-in parallel text: a grammar that makes each English sentence together with its French translation.

What must be learned is what French does and English does not: articles, adjectives and possessives agree with
the noun; most adjectives follow it; words change before a vowel (vieux, vieil; ma, mon; le, l'); de + le is du; ne and
pas stand around the verb, and after them un becomes de. A word may depend on words to both sides, and order differs.
"""

from __future__ import annotations

import random
from typing import NamedTuple

# English singular and plural, French singular and plural, gender
NOUNS = """
cat cats chat chats m, dog dogs chien chiens m, house houses maison maisons f, tree trees arbre arbres m,
car cars voiture voitures f, book books livre livres m, apple apples pomme pommes f, man men homme hommes m,
woman women femme femmes f, child children enfant enfants m, girl girls fille filles f, boy boys garçon garçons m,
bird birds oiseau oiseaux m, horse horses cheval chevaux m, table tables table tables f, door doors porte portes f,
window windows fenêtre fenêtres f, street streets rue rues f, garden gardens jardin jardins m,
school schools école écoles f, friend friends ami amis m, island islands île îles f, river rivers rivière rivières f,
bridge bridges pont ponts m, flower flowers fleur fleurs f, letter letters lettre lettres f, king kings roi rois m,
queen queens reine reines f, doctor doctors médecin médecins m, teacher teachers professeur professeurs m,
key keys clé clés f, box boxes boîte boîtes f, boat boats bateau bateaux m, train trains train trains m,
egg eggs œuf œufs m, orange oranges orange oranges f, shirt shirts chemise chemises f, hat hats chapeau chapeaux m,
mouse mice souris souris f, song songs chanson chansons f
"""
# English; French masculine and feminine, each singular and plural; for some the masculine before a vowel
BEFORE = """
small petit petits petite petites, big grand grands grande grandes, old vieux vieux vieille vieilles vieil,
new nouveau nouveaux nouvelle nouvelles nouvel, beautiful beau beaux belle belles bel, young jeune jeunes jeune jeunes,
good bon bons bonne bonnes
"""
AFTER = """
red rouge rouges rouge rouges, black noir noirs noire noires, white blanc blancs blanche blanches,
green vert verts verte vertes, heavy lourd lourds lourde lourdes, empty vide vides vide vides,
strange étrange étranges étrange étranges, happy heureux heureux heureuse heureuses,
interesting intéressant intéressants intéressante intéressantes, expensive cher chers chère chères
"""
# English he and they; French je, il, nous, ils
VERBS = """
sees see vois voit voyons voient, loves love aime aime aimons aiment, buys buy achète achète achetons achètent,
finds find trouve trouve trouvons trouvent, sells sell vends vend vendons vendent,
hears hear entends entend entendons entendent, draws draw dessine dessine dessinons dessinent,
carries carry porte porte portons portent, watches watch regarde regarde regardons regardent,
hides hide cache cache cachons cachent, knows know connais connaît connaissons connaissent,
chooses choose choisis choisit choisissons choisissent, forgets forget oublie oublie oublions oublient,
paints paint peins peint peignons peignent
"""
PREPOSITIONS = {"in": "dans", "behind": "derrière", "under": "sous", "near": "près de", "in front of": "devant"}
PREPOSITIONS |= {"with": "avec", "without": "sans"}
PRONOUNS = ("I", "je", 0), ("he", "il", 1), ("she", "elle", 1), ("we", "nous", 2)  # English, French, form of the verb
NUMBERS = {"two": "deux", "three": "trois", "four": "quatre", "five": "cinq", "six": "six", "ten": "dix"}

RESERVED = 8  # of all nouns with all adjectives, one in so many pairs is kept for the second held-out set


def _table(text: str) -> list[list[str]]:
    return [row.split() for row in text.split(",")]


class Pair(NamedTuple):
    """A sentence in two languages. reserved: whether a noun has an adjective that it has in no training pair."""

    english: str
    french: str
    reserved: bool


def builtin_pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """20,000 pairs (English, French) to train on, 1,000 held out, and 1,000 of which each has a noun with an adjective
    that never describes it in the others."""
    plain, reserved = ([(pair.english, pair.french) for pair in found] for found in pairs(21_000))
    return plain[:20_000], plain[20_000:], reserved[:1_000]


def pairs(count: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """`count` different pairs, and those drawn meanwhile that have a reserved noun and adjective, a tenth as many.

    >>> pair = pairs(20)[0][17]
    >>> print(f"{pair.english} = {pair.french}")
    the happy island chooses the young box = l'île heureuse choisit la jeune boîte
    """
    rng = random.Random(seed)
    plain: dict[str, Pair] = {}
    reserved: dict[str, Pair] = {}
    while len(plain) < count or len(reserved) < count // 10:
        pair = _Sentence(rng).pair()
        found = reserved if pair.reserved else plain
        if len(found) < (count // 10 if pair.reserved else count):
            found.setdefault(pair.english, pair)
    return list(plain.values()), list(reserved.values())


class _Sentence:
    """Subject, verb, object, and perhaps a place; drawn part by part."""

    def __init__(self, rng: random.Random):
        self.rng, self.reserved = rng, False

    def pair(self) -> Pair:
        rng = self.rng
        is_negated = rng.random() < 0.35
        if rng.random() < 0.4:
            subject, sujet, form = rng.choice(PRONOUNS)
        else:
            subject, sujet, is_plural = self.noun_phrase()
            form = 3 if is_plural else 1
        english, french = self.verb(form, is_negated)
        if sujet == "je" and _has_vowel(french):
            sujet = "j'"
        whom, qui, _ = self.noun_phrase(is_negated=is_negated)
        parts = [(subject, sujet), (english, french), (whom, qui)]
        if rng.random() < 0.45:
            parts.append(self.place())
        english, french = (" ".join(side) for side in zip(*parts))
        return Pair(english, french.replace("' ", "'"), self.reserved)

    def verb(self, form: int, is_negated: bool) -> tuple[str, str]:
        third, base, *forms = self.rng.choice(_VERBS)
        french = forms[form]
        if not is_negated:
            return third if form == 1 else base, french
        ne = "n'" if _has_vowel(french) else "ne"
        return f"{'does' if form == 1 else 'do'} not {base}", f"{ne} {french} pas"

    def place(self) -> tuple[str, str]:
        preposition = self.rng.choice([*PREPOSITIONS])
        where, lieu, _ = self.noun_phrase()
        de, _, rest = PREPOSITIONS[preposition].partition(" ")
        if not rest:
            return f"{preposition} {where}", f"{de} {lieu}"
        article, _, noun = lieu.partition(" ")
        if article in ("le", "les"):  # de + le = du, de + les = des
            return f"{preposition} {where}", f"{de} {'du' if article == 'le' else 'des'} {noun}"
        if article in ("des", "de", "d'"):  # de + des = de
            lieu = noun
        return f"{preposition} {where}", f"{de} {_before('de', lieu)} {lieu}"

    def noun_phrase(self, *, is_negated: bool = False) -> tuple[str, str, bool]:
        """English, French, and whether it is a plural. is_negated: it is the object of a verb with not."""
        rng = self.rng
        singular, plural, singulier, pluriel, gender = rng.choice(_NOUNS)
        is_plural, is_feminine = rng.random() < 0.4, gender == "f"
        before = rng.choice(_BEFORE) if rng.random() < 0.35 else None
        after = rng.choice(_AFTER) if rng.random() < 0.35 else None
        noun, nom = (plural, pluriel) if is_plural else (singular, singulier)
        english, french = [noun], [nom]
        for adjective in filter(None, (after, before)):
            english.insert(0, adjective[0])
            form = adjective[1 + is_plural + 2 * is_feminine]
            if adjective is after:
                french.append(form)
            else:
                has_other = len(adjective) > 5 and not is_plural and not is_feminine and _has_vowel(nom)
                french.insert(0, adjective[5] if has_other else form)
            self.reserved |= is_reserved(singular, adjective[0])
        kinds = ["the", "the", "a", "this", "my", "our"] + ["number"] * is_plural
        kind = rng.choice(kinds)
        article, determinant = self.determiner(kind, english[0], french[0], is_plural, is_feminine, is_negated, before)
        return " ".join([article, *english]), " ".join([determinant, *french]), is_plural

    def determiner(
        self, kind: str, word: str, mot: str, is_plural: bool, is_feminine: bool, is_negated: bool, before: object
    ) -> tuple[str, str]:
        """English and French, before these words. before: an adjective that precedes the noun, or None."""
        if kind == "number":
            return self.rng.choice([*NUMBERS.items()])
        if kind == "a":
            if is_negated:
                article = "any" if is_plural else "an" if word[0] in "aeiou" else "a"
                return article, _before("de", mot)
            if is_plural:
                return "some", _before("de", mot) if before else "des"
            return "an" if word[0] in "aeiou" else "a", "une" if is_feminine else "un"
        if is_plural:
            return {"the": ("the", "les"), "this": ("these", "ces"), "my": ("my", "mes"), "our": ("our", "nos")}[kind]
        if kind == "the":
            return kind, _before("la" if is_feminine else "le", mot)
        if kind == "this":
            return kind, "cette" if is_feminine else "cet" if _has_vowel(mot) else "ce"
        if kind == "my":
            return kind, "ma" if is_feminine and not _has_vowel(mot) else "mon"
        return kind, "notre"


def is_reserved(noun: str, adjective: str) -> bool:
    """Is this noun kept from this adjective in all training pairs?

    >>> [adjective for adjective in ("small", "old", "red", "happy", "empty") if is_reserved("house", adjective)]
    ['old']
    """
    return (3 * _PLACES[noun] + 5 * _PLACES[adjective]) % RESERVED == 0


def _has_vowel(words: str) -> bool:
    """Does it begin with a vowel, or a mute h? All nouns with an h here have a mute one."""
    return words[0] in "aeiouhéêèâîôûœ"


def _before(article: str, words: str) -> str:
    """le, la or de, shortened before a vowel."""
    return f"{article[0]}'" if _has_vowel(words) else article


_NOUNS, _BEFORE, _AFTER, _VERBS = map(_table, (NOUNS, BEFORE, AFTER, VERBS))
_PLACES = {row[0]: place for rows in (_NOUNS, _BEFORE + _AFTER) for place, row in enumerate(rows)}
