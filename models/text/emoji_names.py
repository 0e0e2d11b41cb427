"""Names of emoji, arrows and emoticons in words that a text tokenizer knows.

A curated name says what a sign means for a reader: a feeling or a direction. Any other emoji gets its name in Unicode
14, which never changes. A bundle's answers rest on these names, so an edit needs a new number in `reading.READINGS`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ZERO_WIDTH_JOINER = "\u200d"
MODIFIERS = "\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"
"""A character class of what only changes the look of an emoji: variation selectors, skin tones and tags."""

SIGNS = (
    "←-↔↖-↙↩↪⇑⇓⇧⇩⌚⌛⏩-⏪⏫⏬⏰⏳▲▼☀-☄☔☕☘☝☠☢☣☹☺☻♡♥♻⚠⚡⚰⚽⚾⛄-⛈⛔✂✅✈-✍✓✔✖✗✘✨❄❌❎❓❔❕❗❣❤➕➖➡⤴⤵⬅-⬇⭐⭕"
    "\U0001f191-\U0001f19a\U0001f300-\U0001f3fa\U0001f400-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7eb"
    "\U0001f900-\U0001faff"
)
"""A character class of the signs that are read by name. Bullets, stars and zodiac signs stay as they are."""

EMOJI_PATTERN = (
    f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3"
    f"|[{SIGNS}][{MODIFIERS}]*(?:{ZERO_WIDTH_JOINER}[{SIGNS}♀♂⚕⚖⚧⬛][{MODIFIERS}]*)*"
)
"""A whole emoji, with its joiners and modifiers: also a flag of two letters, or a digit in a key."""

_NAMES = {
    # Markets and directions
    "chart rising": "📈",
    "chart falling": "📉",
    "chart": "📊💹",
    "up": "↑⬆⇑⇧▲🔼🔺⏫☝👆🆙",
    "down": "↓⬇⇓⇩▼🔽🔻⏬👇",
    "rising": "↗⤴",
    "falling": "↘⤵",
    "to": "→➡",
    "back": "←⬅↖↙",
    "both ways": "↔",
    "return": "↩↪",
    "rocket": "🚀",
    "moon": "🌕🌙🌝🌚",
    "bull": "🐂🐃",
    "bear": "🐻",
    "money": "💰💵💴💶💷🪙",
    "rich": "🤑",
    "money flying away": "💸",
    "diamond": "💎",
    "bank": "🏦",
    "new": "🆕",
    "cool": "🆒",
    "fine": "🆗",
    "free": "🆓",
    "help": "🆘",
    # Joy
    "smiling face": "😀😃😄😊🙂☺☻😺😸🙃",
    "grinning face": "😁😆",
    "laughing face": "😂🤣😹",
    "happy sweat": "😅",
    "winking face": "😉",
    "playful face": "😛😜😝🤪😋",
    "in love": "😍🥰😻",
    "star struck": "🤩",
    "kiss": "😘😗😙😚😽💋",
    "relieved face": "😌",
    "cool face": "😎",
    "angel face": "😇",
    "hug": "🤗🫂🫶",
    "party": "🥳🎉🎊",
    "touched": "🥹",
    # Approval
    "thumbs up": "👍",
    "well done": "👏",
    "praise": "🙌",
    "thanks": "🙏",
    "perfect": "👌🤌💯",
    "strong": "💪🦾",
    "victory": "✌",
    "handshake": "🤝",
    "good luck": "🤞🍀",
    "salute": "🫡",
    "check": "✅✓✔☑",
    "trophy": "🏆🥇🏅🎖",
    "crown": "👑",
    "gem": "🔮",
    "fire": "🔥",
    "sparkles": "✨🌟💫",
    "star": "⭐",
    "love": "❤♥♡💕💖💗💓💞💘💝💙💚💛💜🧡🖤🤍🤎🩷🩵🩶❣💟",
    "rose": "🌹🌷🌸🌺💐",
    "cheers": "🍻🍺🥂🍾",
    "sun": "☀🌞🌅",
    "rainbow": "🌈",
    # Sadness and fear
    "sad face": "😞😔🙁☹😟🥺😿",
    "crying face": "😢🥲",
    "sobbing face": "😭",
    "disappointed face": "😥😓",
    "tired face": "😩😫😪🥱🫩",
    "pained face": "😣😖",
    "sick face": "🤢🤮😷🤒🤕🤧",
    "worried face": "😧😦😬😰",
    "frightened face": "😨😱🙀",
    "shocked face": "😳😮😯😲🤯🫨🫢",
    "dizzy face": "😵🥴",
    "broken heart": "💔",
    "dead": "💀☠⚰🪦👻",
    "storm": "⛈🌪🌧",
    # Anger and contempt
    "angry face": "😠😡🤬👿😾😤💢",
    "devil": "😈",
    "annoyed face": "😒🙄😑",
    "doubtful face": "😕🤨🫤",
    "thinking face": "🤔🧐",
    "face without expression": "😐😶🫥",
    "smirking face": "😏",
    "silenced": "🤐🤫🤭",
    "liar": "🤥",
    "clown": "🤡",
    "shit": "💩",
    "thumbs down": "👎",
    "middle finger": "🖕",
    "fist": "👊✊🤛🤜",
    "no": "❌✖✗✘❎🙅🚫⛔🛑🆖",
    "yes": "🙆",
    "shrug": "🤷",
    "palm on the face": "🤦",
    "rubbish": "🗑🚮",
    # Warnings and marks
    "warning": "⚠🚨☢☣📛",
    "bomb": "💣💥🧨",
    "lightning": "⚡🌩",
    "red flag": "🚩",
    "!": "❗❕",
    "?": "❓❔",
    "plus": "➕",
    "minus": "➖",
    "looking": "👀👁",
    "waving": "👋",
    "pointing": "👉👈🫵",
    "sleeping": "😴💤",
    "speech": "💬🗯🗣",
    "announcement": "📢📣",
    "news": "📰🗞",
    "green": "🟢🟩",
    "red": "🔴🟥",
    "yellow": "🟡🟨",
    "orange": "🟠🟧",
}
NAMES = {sign: name for name, signs in _NAMES.items() for sign in signs}
"""Names of signs of one character."""

SEQUENCE_NAMES = {
    "😮‍💨": "sighing face",
    "😵‍💫": "dizzy face",
    "😶‍🌫": "face in the clouds",
    "❤‍🔥": "burning love",
    "❤‍🩹": "mending heart",
    "🙂‍↔": "no",
    "🙂‍↕": "yes",
    "🐦‍🔥": "phoenix",
}
"""Names of signs that a joiner makes of others. Any other such emoji has the name of its first sign."""

EMOTICONS = {
    "smiling face": r"[:=]-?[)\]]+ \(?\^[_-]?\^\)? \(\^o\^\)",
    "laughing face": r"[:=]-?D+",
    "winking face": r";-?\)+",
    "playful face": r"[:=;]-?[Pp]",
    "sad face": r"[:=]-?[(\[]+",
    "crying face": r"[:=]'-?\(+ \(?T_+T\)? \(?;_+;\)? QAQ",
    "doubtful face": r"[:=]-?[/\\]",
    "face without expression": r"[:=]-?\|",
    "shocked face": r"[:=]-?[Oo] o_O O_o O_O o_o",
    "angry face": r">[:=]-?\(+",
    "annoyed face": r"\(?-_+-\)?",
    "upset face": r"\(?>_+<\)?",
    "love": r"<3+",
    "broken heart": r"</3+",
    "shrug": r"¯\\_\([ツシ]\)_/¯",
    "furious": r"\(╯°□°\)╯︵\x20?┻━┻ \(╯°□°\)╯",
    "cheering": r"\\o/",
}
"""Emoticons by name: regular expressions, which a space separates."""

_EMOTICON_NAMES = [
    (re.compile(pattern), name) for name, patterns in EMOTICONS.items() for pattern in patterns.split(" ")
]
EMOTICON_PATTERN = "|".join(pattern.pattern for pattern, _ in _EMOTICON_NAMES)

_LOOK = re.compile(f"[{MODIFIERS}]")
_NO_MEANING = re.compile(r"\b(?:sign|symbol|squared|black|white|heavy|with|emoji)\b|-")


@lru_cache(maxsize=4096)
def name_emoji(emoji: str) -> str | None:
    """Return the name of an emoji that `EMOJI_PATTERN` matched, or None if it has none."""
    sign = _LOOK.sub("", emoji)
    if sign.endswith("\u20e3"):
        return sign[0]
    if "\U0001f1e6" <= sign[0] <= "\U0001f1ff":
        return "".join(chr(ord(letter) - 0x1F1E6 + ord("A")) for letter in sign)
    if sign in SEQUENCE_NAMES:
        return SEQUENCE_NAMES[sign]
    if sign[0] in NAMES:
        return NAMES[sign[0]]
    name = unicodedata.name(sign[0], "").lower()
    return " ".join(_NO_MEANING.sub(" ", name).split()) or name or None


@lru_cache(maxsize=1024)
def name_emoticon(emoticon: str) -> str:
    """Return the name of an emoticon that `EMOTICON_PATTERN` matched."""
    return next(name for pattern, name in _EMOTICON_NAMES if pattern.fullmatch(emoticon))
