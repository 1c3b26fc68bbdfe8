"""Small texts of the project's own, in many scripts, with what makes tokenizing hard."""

from __future__ import annotations

import random

TEXTS = (
    "Mix flour, water and salt. Let the dough rest for 45 minutes.\n\nThen bake it at 230 °C!!",
    "Die Katze schläft auf der Fensterbank; draußen regnet es seit Stunden.",
    "Le chat dort près de la fenêtre, et il pleut depuis des heures…",
    "El gato duerme junto a la ventana. ¿Llueve todavía? ¡Sí!",
    "Кошка спит на подоконнике, а на улице идёт дождь.",  # noqa: RUF001
    "猫在窗台上睡觉,外面下了几个小时的雨。",
    "猫は窓辺で眠っている。外では何時間も雨が降っている。",
    "고양이가 창가에서 자고 있고 밖에는 비가 내린다.",
    "القطة تنام بجانب النافذة، والمطر يهطل منذ ساعات.",
    "बिल्ली खिड़की के पास सो रही है और बाहर बारिश हो रही है।",
    "แมวกำลังนอนอยู่ข้างหน้าต่าง ข้างนอกฝนตก",
    "Con mèo đang ngủ bên cửa sổ, ngoài trời mưa.",
    "Γάτα κοιμάται στο παράθυρο ενώ έξω βρέχει.",
    "החתול ישן ליד החלון ובחוץ יורד גשם.",
    "def f(x):\n\tif x  >  10:\r\n\t\treturn  {'a': [1, 22, 333]}\n\n\n    # done  \n",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 went 👍🏽👍🏽 to 🇩🇪🇫🇷.",
    "e\u0301a\u0300o\u0302 n\u0303 \u1112\u1161\u11ab\u1100\u1173\u11af a\u0323\u0302",
    "1  2   3\t\t4 \n \n5\r\n\r\n 6   ",
    "<|im_start|>system\nYou are free.<|im_end|><think></think> <|endoftext|>",
    "https://example.org/a?b=c&d=%20e#f  don't we'LL I'M",
)


def cut(text: str, source: random.Random, longest: int = 20) -> list[str]:
    """`text` in pieces of 1 to `longest` characters."""
    pieces = []
    while text:
        size = source.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces
