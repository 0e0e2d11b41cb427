"""Labels of texts by word lists and small models, in the environment of the peers.

Reads JSON lines {"text", "language"} from standard input and writes one object per line: the label by peer.
"""

import json
import logging
import sys

from afinn import Afinn
from cnsenti import Sentiment
from snownlp import SnowNLP
from textblob import TextBlob
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

logging.disable(logging.CRITICAL)
VADER, AFINN, CNSENTI = SentimentIntensityAnalyzer(), Afinn(emoticons=True), Sentiment()


def vader(text):
    # The thresholds of its documentation.
    return label(VADER.polarity_scores(text)["compound"], 0.05)


def textblob(text):
    return label(TextBlob(text).sentiment.polarity, 0.0)


def afinn(text):
    return label(AFINN.score(text), 0.0)


def snownlp(text):
    # A probability of "positive" without a neutral class: its middle fifth counts as neutral.
    return label(SnowNLP(text).sentiments - 0.5, 0.1)


def cnsenti(text):
    counts = CNSENTI.sentiment_count(text)
    return label(counts["pos"] - counts["neg"], 0.0)


def label(score, margin):
    return "positive" if score > margin else "negative" if score < -margin else "neutral"


PEERS = {
    "en": {"VADER": vader, "TextBlob": textblob, "AFINN": afinn},
    "zh": {"SnowNLP": snownlp, "cnsenti": cnsenti},
}

for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({name: peer(row["text"]) for name, peer in PEERS[row["language"]].items()}))
