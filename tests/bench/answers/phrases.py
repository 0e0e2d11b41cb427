"""Texts in English and Chinese, made from templates and word lists. They come from no data set."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

COMPANIES = (
    "Acme",
    "Northwind",
    "Globex",
    "Harbour Bank",
    "Blue River Steel",
    "Umbra Energy",
    "Delta Foods",
    "Kite Air",
)
COMPANIES_ZH = ("北风科技", "蓝河钢铁", "海港银行", "三角食品", "风筝航空", "青山能源", "长桥保险")
_MOVES = ("jump", "slip", "plunge", "are flat", "edge higher", "recover", "lose 4%", "soar 12.5%")
_CAUSES = (
    "a profit warning",
    "record quarterly sales",
    "the chief executive resigns",
    "a recall of 40,000 cars",
    "the regulator approves the merger",
    "analysts cut their targets",
    "a quiet session",
    "an unexpected dividend",
)
_MOVES_ZH = ("大涨", "下跌", "小幅走高", "跌停", "持平", "反弹")
_CAUSES_ZH = (
    "净利润同比增长三成",
    "大股东宣布减持",
    "业绩低于预期",
    "获得海外订单",
    "被监管部门立案调查",
    "发布年度报告",
)
_GOODS = ("kettle", "headset", "winter coat", "phone case", "desk lamp", "bicycle helmet")
_PRAISE = ("works perfectly", "broke after two days", "is exactly as shown", "never arrived", "is fine for the price")
_GOODS_ZH = ("手机", "耳机", "快递", "羽绒服", "台灯", "酒店房间")
_PRAISE_ZH = ("质量很好，非常满意", "用了两天就坏了", "还可以，一般般", "太差了，再也不买了", "物流很快，包装完好")
_WISHES = (
    "where is my card",
    "my transfer has not arrived yet",
    "how do I change my PIN",
    "I want to dispute a charge of {number} pounds",
    "what is the weather in {city} tomorrow",
    "book a flight to {city} for {number} people",
    "I lost my phone and need to block the account",
    "order two pizzas and a lemonade",
    "can you sing me a song about {city}",
    "please close my account",
    "set an alarm for {number} o'clock",
    "why was I charged a fee for cash",
)
_WISHES_ZH = (
    "明天{city}的天气怎么样",
    "帮我订一张去{city}的火车票",
    "播放一首老歌",
    "{number}加{number}等于多少",
    "我的银行卡丢了怎么办",
    "打电话给妈妈",
    "附近有什么好吃的",
    "给我讲个笑话",
)
_CITIES = ("Lisbon", "Leeds", "Osaka", "Quito", "Malmö")
_CITIES_ZH = ("北京", "上海", "杭州", "成都")
_AGENT = (
    "Which one do you mean?",
    "Could you tell me your name, please?",
    "I can help you with that.",
    "Do you have a price range in mind?",
    "Is there anything else?",
    "请问您的订单号是多少？",
)
_SHORT = ("yes", "no, thanks", "the blue one", "tomorrow at 5", "两张", "好的")
_REPLIES = (
    "Your new card will arrive within {number} days.",
    "I am sorry to hear that. Which order is it?",
    "The transfer can take up to {number} working days.",
    "Thank you and goodbye.",
    "I have found {number} hotels in the north of the city.",
    "Your account is closed now.",
    "What is the amount of the charge?",
    "The flight leaves at {number} in the morning.",
    "您的退款将在{number}天内到账。",
    "很抱歉给您带来不便。",
)
_ADJECTIVES = ("red", "vintage", "set of 4", "large", "wooden", "paper", "heart shaped", "ivory", "childrens")
_THINGS = (
    "tea cups",
    "hot water bottle",
    "cake stand",
    "lunch bag",
    "candle holder",
    "doormat",
    "alarm clock",
    "novel",
)
_ADJECTIVES_ZH = ("红色", "复古", "大号", "木制", "儿童", "圣诞")
_THINGS_ZH = ("茶杯", "热水袋", "蛋糕架", "午餐袋", "烛台", "闹钟", "长篇小说")


@dataclass(frozen=True, slots=True)
class Writer:
    """A source of texts; the same state of `rng` gives the same texts."""

    rng: Random

    def headline(self) -> str:
        if self.rng.random() < 0.4:
            company, move = self.rng.choice(COMPANIES_ZH), self.rng.choice(_MOVES_ZH)
            return f"{company}{self.rng.choice(_CAUSES_ZH)}，股价{move}"
        company, move = self.rng.choice(COMPANIES), self.rng.choice(_MOVES)
        return f"Shares of {company} {move} after {self.rng.choice(_CAUSES)}"

    def comment(self) -> str:
        if self.rng.random() < 0.4:
            return f"{self.rng.choice(_GOODS_ZH)}{self.rng.choice(_PRAISE_ZH)}！"
        return f"The {self.rng.choice(_GOODS)} {self.rng.choice(_PRAISE)}."

    def text(self) -> str:
        """Return a headline, a comment, or both languages mixed, sometimes with odd characters."""
        kind = self.rng.random()
        if kind < 0.5:
            return self.headline()
        if kind < 0.85:
            return self.comment()
        if kind < 0.95:
            return f"{self.headline()} / {self.comment()}"
        return f"  🚀 {self.headline()}\n\t“{self.comment()}” https://example.org/a?b=1 \\ \u00a0é"

    def comparison(self) -> tuple[str, str]:
        """Return a text about two companies, and the name of either."""
        companies = COMPANIES if self.rng.random() < 0.6 else COMPANIES_ZH
        first, second = self.rng.sample(companies, 2)
        text = f"{first} soars while {second} plunges" if companies is COMPANIES else f"{first}大涨，{second}却跌停"
        return text, self.rng.choice((first, second))

    def long(self, sentences: int) -> str:
        return " ".join(self.text() for _ in range(sentences))

    def wish(self) -> str:
        chinese = self.rng.random() < 0.3
        template = self.rng.choice(_WISHES_ZH if chinese else _WISHES)
        return template.format(city=self.rng.choice(_CITIES_ZH if chinese else _CITIES), number=self.rng.randint(2, 90))

    def dialogue(self, turns: int) -> list[dict[str, str]]:
        """Return `turns` turns, oldest first. The first is the customer's."""
        dialogue = [{"speaker": "customer", "text": self.wish()}]
        while len(dialogue) < turns:
            if self.rng.random() < 0.5:
                dialogue.append({"speaker": "agent", "text": self.rng.choice(_AGENT)})
            else:
                text = self.rng.choice(_SHORT) if self.rng.random() < 0.5 else self.wish()
                dialogue.append({"speaker": "customer", "text": text})
        return dialogue

    def replies(self, count: int) -> list[str]:
        """Return `count` different replies."""
        replies: dict[str, None] = {}
        while len(replies) < count:
            template = self.rng.choice(_REPLIES)
            replies.setdefault(template.format(number=self.rng.randint(2, 900)))
        return list(replies)

    def item(self) -> str:
        if self.rng.random() < 0.3:
            return self.rng.choice(_ADJECTIVES_ZH) + self.rng.choice(_THINGS_ZH)
        return f"{self.rng.choice(_ADJECTIVES)} {self.rng.choice(_THINGS)}"
