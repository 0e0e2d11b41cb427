"""The mark of texts in other languages: short made-up ones of each kind, and what must not be marked."""

from __future__ import annotations

import time

import pytest

from models.text.foreign import is_foreign
from models.text.language import name_language

FOREIGN = {
    "French": [
        "Le service est terrible",
        "Très bon produit",
        "Où est ma commande ?",
        "L'entreprise affiche une perte record",
        "Votre application ne marche plus depuis hier",
        "Les actions de Renault chutent après l'avertissement",
        "C'est nul",
        "Pouvez-vous m'aider ?",
    ],
    "German": [
        "Das ist gut",
        "Sehr gut",
        "Der Service ist schrecklich",
        "Wo ist meine Bestellung?",
        "Umsatz steigt um fünf Prozent",
        "Die App funktioniert seit gestern nicht mehr",
        "Was für ein schreckliches Erlebnis",
        "Viel zu teuer",
    ],
    "Spanish": [
        "El servicio es terrible",
        "No estoy contento",
        "¿Dónde está mi pedido?",
        "Las acciones de Telefónica caen tras el aviso",
        "Me encanta este restaurante",
        "El jefe dimite por un escándalo",
    ],
    "Italian": [
        "Il servizio è terribile",
        "Ottimo prodotto",
        "Dov'è il mio ordine?",
        "La consegna ha richiesto tre settimane",
        "Funziona molto bene",
    ],
    "Portuguese": ["O serviço é terrível", "Não estou satisfeito", "Onde está o meu pedido?"],
    "Dutch": ["Heel goed product", "Ik ben niet tevreden", "Waar is mijn bestelling?"],
    "another script": [
        "Привет, как дела?",
        "サービスが悪いです",
        "株価が急落した",
        "서비스가 나빠요",
        "الخدمة سيئة",
        "השירות גרוע",
        "η υπηρεσία είναι κακή",
        "บริการแย่มาก",
    ],
    "others": ["Dịch vụ rất tệ", "Usługa jest okropna, nie polecam", "Hizmet çok kötü", "Tjänsten är inte bra"],
}

ENGLISH = """
ok | good | no | hi | AAPL | TSLA +5% | BTC to the moon | where is my card? | card declined | Q3 est. 1.20 vs 1.15
im bill i need a loan | fall 5 per cent | RBI policy a non-event | vernon hills il | mon fri hours | est time 5pm
Los Angeles Lakers win | La Liga title race | Banco do Brasil beats estimates | Société Générale cuts jobs
Crédit Agricole S.A. | Le Monde reports | Der Spiegel | El Niño | Las Vegas Sands falls | Die Hard is great | São Paulo
Müller | Nestlé | L'Oréal | Moët & Chandon | de Beers | Van Gogh | Volkswagen und BMW | café latte | déjà vu
naïve résumé | ok lol ಠ_ಠ | ¯\\_(ツ)_/¯ | (´･ω･`) | Alpha and β | Δ hedging | coup de grâce | laissez faire | per se
Guillermo del Toro | La La Land | Les Misérables | Amélie was lovely | Das Boot is a great film | Deutsche Bank AG
Jeanne d'Arc | Vincent van der Bijl | Charles de Gaulle airport closed | Cirque du Soleil files for bankruptcy
c'mon man | d'you know | o'clock | a la carte menu | soup du jour | San Juan de los Lagos | Smith et al. (2020)
bon voyage | bon appétit | mi casa su casa | la la la | James von Klemperer is an architect
""".strip().replace("\n", "|")
CHINESE = """
好|服务太差了|股价上涨|鲜の每日|の|苹果AAPL大涨|特斯拉Model 3|β系数
法国巴黎银行Société Générale|卡哇伊ね|期待^ω^|赞👍
""".strip().replace("\n", "|")


@pytest.mark.parametrize("language", FOREIGN)
def test_a_short_text_of_another_language_is_marked(language: str) -> None:
    assert [text for text in FOREIGN[language] if name_language(text) != "other"] == []


@pytest.mark.parametrize(("language", "texts"), [("en", ENGLISH), ("zh", CHINESE)])
def test_english_and_chinese_are_never_marked_nor_are_names_and_tickers(language: str, texts: str) -> None:
    assert [text for text in texts.split("|") if is_foreign(text.strip())] == []
    if language == "zh":
        assert name_language("公司利润大增") == "zh"


@pytest.mark.parametrize("text", ["Shares of Acme plunge after profit warning. ", "Les actions chutent après ", "下跌"])
def test_a_long_text_takes_no_longer_than_its_beginning(text: str) -> None:
    def seconds(repeated: str) -> float:
        begun_s = time.process_time()
        for _ in range(200):
            is_foreign(repeated)
        return time.process_time() - begun_s

    assert min(seconds(text * 10_000) for _ in range(3)) < 3 * max(seconds(text * 200), 0.001)
