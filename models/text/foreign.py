"""The mark of a text that is neither English nor Chinese: letters of another script, or common words of a language.

Names of people, places and firms of any language occur in English and Chinese texts, so one foreign word says nothing.
"""

from __future__ import annotations

import re

_CHARACTERS = 240
"""Characters that decide. More would cost time and say the same."""

_MIN_SCORE = 3
_MIN_SCRIPT_LETTERS = 3
_MAX_NAME_SCORE = 2
_MIN_WORDS = 2
_WORD = re.compile(r"[^\W\d_]+")
_ELISION = re.compile(
    r"(?<!\w)(?:[cdjlmnst]|[CDJLMNST]|qu|Qu|(?:[dns]|da|su)?[ae]ll|un)['’](?!mon\b|oh\b|you\b|ye\b)[a-zà-ÿ]{2}"
)
"""A French or Italian article or pronoun without its vowel, before a word in lower case."""

_LATIN = re.compile("[A-Za-z]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_OTHER_SCRIPT = re.compile(
    "[\u0370-\u03ff\u0400-\u052f\u0530-\u058f\u05d0-\u05ea\u0620-\u06ff\u0900-\u0dff\u0e01-\u0e4e\u10a0-\u10ff"
    "\u1100-\u11ff\u1780-\u17b3\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3]"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ENGLISH = _words(
    """
    about after all an and any are as at be because been before but by can could did does for from had has have he
    her here his how i if in into is it its just more my no not of on or our out over she should so some than that
    the their there these they this those to too up very was we were what when where which who why will with would
    yes you your
    """
)
"""Words that show English."""

_CLEAR = _words(
    """
    je ne ça cela cet ses peut peux pouvez faut doit quelle quel quand chaque arrive arrivé marche recommande cher
    mois année client très ont fait faire dire tous toutes tout autre autres moins eux lui leurs sont était être
    avec dans vous nous ils elle elles mais aux qui que quoi où comme cette leur votre vos notre avez sans avoir
    avons suis merci bonjour jamais toujours aussi trop rien été après depuis beaucoup vraiment pourquoi voudrais
    encore mauvais mauvaise bonne meilleur livraison hausse baisse bénéfice entreprise banque emplois résultats
    chutent trimestre troisième nul qualité remboursement jours können könnte müssen muss soll wollen viel viele
    mehr dann doch schon ganz etwas alles nichts jetzt heute kam kommt geht macht hatte waren sich uns euch mir mich
    dir dich wird worden zwischen teuer preis prozent hebt und ist sind nicht ich wir ihr ihre sie mit auf für zum
    zur bei nach aber oder auch noch nur sehr wenn ein eine einen einem einer kein keine mein meine wurde werden
    haben habe durch über unter gegen gut gute schlecht schlechter bitte danke dank dass immer wieder gerne steigt
    fällt sinkt umsatz gewinn verlust aktie unternehmen bestellung lieferung konto karte wochen jahr möchte kann
    seit warum liebe vielen geld puedo puede puedes tiene tienen hacer hace soy eres somos nuestro nuestra sus sobre
    algo nadie tanto mejor peor malo mala precio año días llegó estaba cómo cuándo quién demasiado funciona está
    están muy pero para como esta estos qué por también usted ustedes ella ellos fue han todo todos nada nunca
    siempre gracias hola buen bueno buena porque cuando donde dónde desde hasta quiero tras caen suben acciones
    empresa cuenta tarjeta pedido entrega empleos ingresos pérdidas recomiendo calidad servicio aplicación película
    encanta ayer estoy tengo ayuda semanas trabajo dinero contento può posso possono fare fatto ancora così più meno
    troppo ogni prima senza loro nostro bene ero funziona arrivato dopo prezzo anno giorni stime borsa perdono
    titoli mio nulla niente sono che della delle degli nella nelle sulla gli questo questa questi molto anche perché
    quando dove hanno stato stata grazie buono buona ottimo tutto sempre mai alla azioni ricavi azienda perdita
    consegna ordine servizio prodotto vorrei riesco davvero ieri adoro ristorante peggio vostro salgono não são
    estão muito também uma com pelo pela meu minha seu sua isso esse essa foi têm você obrigado obrigada até após
    onde ações receita serviço produto conta cartão sobe caem ajuda ontem satisfeito het een niet zijn werd wordt
    maar ook nog naar voor aan deze zeer heel goed slecht ik jij wij zij mijn uw geen heb heeft hebben meer altijd
    bedankt waar werkt sinds gisteren vind tevreden bestelling aandeel omzet stijgt daalt winst kaart hartelijk hulp
    och är inte det att som för på jag mycket också tack ikke jeg meget nie jest się że jak ale czy dla tego bardzo
    mnie już tylko przez są był była není byl velmi bir için çok değil ile daha gibi kötü yang tidak ini itu untuk
    dengan dari sangat saya adalah và là của không có được rất này și nu în pentru foarte egy hogy nagyon oli mutta
    erittäin
    """
)
"""Words that hardly occur in English texts, nor in names: by language, from French to Finnish."""

_COMMON = _words(
    """
    actions au auf banco bien bon ce commande compte con conto dat dit en es est este ha heeft ho il je lo ma mas
    mes mi mille mon muy nao non om os par pour se ses son stellen su sur te tu um un une uno war yo zu
    """
)
"""Words that English texts hold as abbreviations and in names, but seldom in lower case."""

_NAME_PARTS = _words(
    """
    da das de del dem den der des di die do dos du el et gli la las le les los van von zum
    """
)
"""Words of which names are made, so that they count little."""

_BORROWED = _words(
    """
    appétit café cafés cliché clichés déjà entrée façade fiancé fiancée grâce là naïve protégé purée résumé résumés
    à
    """
)
"""Words with an accent that English has borrowed."""


def is_foreign(text: str) -> bool:
    """Return True if a text is in neither English nor Chinese, as far as scripts and common words tell."""
    text = text[:_CHARACTERS]
    if not text.isascii() and _has_other_script(text):
        return True
    words = _WORD.findall(text)
    if len(words) < _MIN_WORDS:
        return False
    lower = {*words, words[0].lower()}  # a sentence begins with a capital, and so do names
    score = 2 * len(_CLEAR.intersection(lower))
    score += min(_MAX_NAME_SCORE, len(_NAME_PARTS.intersection(lower)))
    score += min(_MAX_NAME_SCORE, 2 * len(_COMMON.intersection(words)))
    if "'" in text or "’" in text:
        score += 2 * len(_ELISION.findall(text))
    if not text.isascii():
        score += 2 * sum(_is_accented(word) for word in words)
    return score >= _MIN_SCORE and score > 2 * len(_ENGLISH.intersection(lower))


def _is_accented(word: str) -> bool:
    """Return True for a word with an accent in lower case that is none of the words English has borrowed."""
    return not word.isascii() and word.islower() and word not in _BORROWED and _HAN.search(word) is None


def _has_other_script(text: str) -> bool:
    """Return True if letters of a script that is neither Latin nor Chinese carry the text."""
    other = len(_OTHER_SCRIPT.findall(text))
    if other < _MIN_SCRIPT_LETTERS:
        return False
    # Japanese is written with Chinese characters too, between which kana stand.
    if (kana := len(_KANA.findall(text))) * 5 >= len(_HAN.findall(text)) and kana * 2 > len(_LATIN.findall(text)):
        return True
    return (other - kana) * 2 > len(_LATIN.findall(text)) + 4 * len(_HAN.findall(text))
