"""The words of the small world, English and Japanese side by side. Small and regular on purpose: a model of a few
million parameters can learn all of it."""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

from dataclasses import dataclass

# People. Nobody in `RESERVED` ever appears in the split "train": answers about them show that names are copied
# from the text and not remembered.
GIRLS = (
    "Anna Mia Lucy Emma Lily Rosa Ella Sara Kate Jane Mary Alice Ruby Nina Zoe Amy Eva Ida Lena Clara Julia Maya "
    "Tina Vera Molly Daisy Hana Sofia Laura Linda Helen Karen Nancy Paula Wendy Betty Carol Diana Ellen Fiona Gina "
    "Holly Irene Jenny Kelly Laila Mona Olga Polly Rita Sally Tara Una Yara Bella Cora Dora Erika Flora Heidi"
).split()
BOYS = (
    "Tom Ben Max Sam Leo Jack Tim Dan Bob Jim Paul Adam Carl Eric Finn Hugo Ivan Jonas Karl Luke Nick Omar Pete Ray "
    "Sean Theo Victor Alan Bruno Colin David Edgar Frank Glen Henry Isaac Jason Kevin Liam Martin Neil Otto Ralph "
    "Simon Toby Alex Brian Chris Dennis Ernest Fred George Harry Ian Joe Kenji Lars Mario Nils Peter"
).split()
GIRLS_JA = (
    "さくら ゆき はな まい あい なお みほ りな ゆい あかり ひかり ももこ かおり さゆり めぐみ ちひろ まゆみ のぞみ えり あや "
    "なつみ みさき ほのか かな けいこ ようこ ゆみこ まりこ るい くみ 花子 洋子 美咲 由美 恵子 京子 明美 優子 愛子 春子 夏子 秋子 "
    "冬美 千夏 美里 信子 良子 真由美 友子 香織 リサ エミ マリ ナナ サキ ミカ アヤ"
).split()
BOYS_JA = (
    "ゆうた しょうた だいき りく そうた はると こうた ひろし まさと さとる つよし あきら まこと しんじ ようすけ たくや なおき かずや "
    "てつや ともや けいた けんじ たかし いさむ 太郎 健太 翔太 大輔 一郎 次郎 拓也 直樹 和也 達也 健一 正夫 光男 文男 春男 大地 一樹 "
    "二郎 三郎 ケン ジュン レイ ユウ タク リョウ マサ"
).split()
RESERVED = {
    "en": {
        "validation": (
            "Nora Stella Bianca Marta Silvia Helga".split(),
            "Felix Oscar Bernard Gordon Ronald Stefan".split(),
        ),
        "test": (
            "Elena Thea Monica Teresa Lydia Greta".split(),
            "Arthur Marco Conrad Walter Dylan Milo".split(),
        ),
    },
    "ja": {
        "validation": (
            "みゆき ななこ さとみ 和子 美香 友美".split(),
            "りょうた こうじ まさる 真一 健二 春樹".split(),
        ),
        "test": (
            "しおり ことね ちなつ 文子 美穂 千春".split(),
            "ゆうき しゅんた たける 良太 信一 大樹".split(),
        ),
    },
}
# Parts of invented names (a start and an end): with them names have to be copied, they cannot be known by heart.
INVENTED = {
    "en": (
        (
            "An Bel Cor Dan El Fen Gil Har In Jor Kar Lan Mar Nor Or Pen Ros Sel Tam Ul Ver Wil Yan Zel Bri Dar Fal Gre Hol "
            "Jes Ken Lor Mel Nat Os Phil Ral Ste Ther Vin Wen Al Art Ber Con Cy Dom Em Fre Gor".split(),
            "a ia en in o us ette ton ric na ra la lin vin do mia ny son ard is ka max ley ga nard thur ter van mond fia".split(),
        ),
    ),
    "ja": (
        (
            "あい あき あさ あや いく いず うめ えみ おと かほ かず かの きよ くる けい こと さや しげ しず しろ すず すみ たえ たか たき ちか つき とし "
            "とも なぎ なつ なる のり はつ ひさ ひで ひな ふじ ふみ ふゆ まき まさ まり みち みつ みな むつ もと やす ゆめ よし りお りん れい".split(),
            "か き こ さ し た ち な み め や よ り る ろ え お ほ ひこ のり ゆき たろう すけ みち".split(),
        ),
        (
            "健 美 真 由 春 友 正 光 信 文 良 大 千 明 秀 智 浩 恵 絵 奈".split(),
            "子 太 介 也 奈 香 紀 人 代 江 之 吾 美 樹 一 二".split(),
        ),
        (
            "アル エル カイ サム ダニ ソフ ニコ ハル ミラ ルカ ベル マル リコ ロー".split(),
            "ン ス ナ ラ ル ト ミ ーノ".split(),
        ),
    ),
}
# Sounds that any name can be put together from. The parts above are few, and a tokenizer makes tokens of them: a network
# that saw no others copies tokens it knows and stumbles over "ef" in Stefan. Here every pair of letters comes by.
SOUNDS_EN = (
    ("b c d f g h j k l m n p r s t v w z " * 3 + "br cl dr fr gl gr pl st tr ch sh th").split(),
    "a a a e e e i i i o o o u u ia ea ie au ei".split(),
    ["", "", "", "", "n", "n", "r", "l", "s", "d", "t", "m", "x", "f", "ck", "rd", "ld", "nd", "rt", "nn"],
)
SOUNDS_JA = tuple(
    sounds.split()
    for sounds in (
        "あ い う え お か き く け こ さ し す せ そ た ち つ て と な に ぬ ね の は ひ ふ へ ほ ま み む め も や ゆ よ ら り る れ ろ わ "
        "が ぎ ぐ げ ご じ ず だ で ど ば び ぶ べ ぼ きょ しょ ちゅ りょ しゅ じゅん こう ゆう そう けん しん よう",
        "ア イ ウ エ オ カ キ ク ケ コ サ シ ス セ ソ タ チ ツ テ ト ナ ニ ネ ノ ハ ヒ フ ヘ ホ マ ミ ム メ モ ラ リ ル レ ロ "
        "ガ ギ グ ゴ ジ ダ デ ド バ ビ ブ ベ ボ パ ピ プ ペ ポ リー ロー マー ジョ シャ チェ ティ フィ",
        "一 二 三 春 夏 秋 冬 和 友 美 真 健 正 信 光 明 花 月 山 川 木 林 森 石 田 海 空 星 雪 風 雨 香 里 子 太 郎 樹 彦 直 次 良 文 武 "
        "進 勝 清 幸 広 弘",
    )
)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something with a name in both languages. `counter` is the Japanese counter word (助数詞)."""

    en: str
    plural: str
    ja: str
    counter: str = "個"

    @property
    def key(self) -> str:
        return self.en


def article(word: str) -> str:
    """`word` with "a" or "an" before it (by its first letter; no word here has a silent or a "yu" beginning)."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def _things(table: str) -> tuple[Thing, ...]:
    rows = [line.split("|") for line in table.strip().splitlines()]
    return tuple(Thing(*(part.strip() for part in row)) for row in rows)


OBJECTS = _things("""
ball|balls|ボール|個
book|books|本|冊
hat|hats|帽子|個
key|keys|鍵|本
bag|bags|かばん|個
cup|cups|コップ|個
pencil|pencils|鉛筆|本
kite|kites|凧|枚
doll|dolls|人形|体
coin|coins|コイン|枚
ring|rings|指輪|個
map|maps|地図|枚
letter|letters|手紙|通
box|boxes|箱|個
lamp|lamps|ランプ|個
drum|drums|太鼓|個
scarf|scarves|マフラー|本
bell|bells|鈴|個
watch|watches|時計|個
umbrella|umbrellas|傘|本
""")
ANIMALS = _things("""
cat|cats|猫|匹
dog|dogs|犬|匹
bird|birds|鳥|羽
rabbit|rabbits|うさぎ|羽
horse|horses|馬|頭
cow|cows|牛|頭
duck|ducks|あひる|羽
frog|frogs|かえる|匹
mouse|mice|ねずみ|匹
pig|pigs|豚|頭
sheep|sheep|羊|頭
bear|bears|熊|頭
fox|foxes|きつね|匹
monkey|monkeys|猿|匹
elephant|elephants|象|頭
lion|lions|ライオン|頭
owl|owls|ふくろう|羽
turtle|turtles|亀|匹
""")
FRUITS = _things("""
apple|apples|りんご|個
pear|pears|梨|個
orange|oranges|みかん|個
banana|bananas|バナナ|本
peach|peaches|桃|個
lemon|lemons|レモン|個
melon|melons|メロン|個
""")
FOODS = _things("""
cookie|cookies|クッキー|枚
cake|cakes|ケーキ|個
sandwich|sandwiches|サンドイッチ|個
pie|pies|パイ|個
potato|potatoes|じゃがいも|個
carrot|carrots|にんじん|本
tomato|tomatoes|トマト|個
egg|eggs|卵|個
""")
SMALL = _things("""
stone|stones|石|個
star|stars|星|個
flower|flowers|花|本
card|cards|カード|枚
chair|chairs|椅子|脚
leaf|leaves|葉っぱ|枚
""")
COUNTABLE = FRUITS + FOODS + SMALL + OBJECTS[:3] + OBJECTS[4:7] + OBJECTS[8:10] + ANIMALS[:5]
# For odd-one-out and "what kind of thing": the kind, and its members.
COLOUR_NAMES = (
    "red|赤|赤い",
    "blue|青|青い",
    "white|白|白い",
    "black|黒|黒い",
    "yellow|黄色|黄色い",
    "green|緑|緑の",
    "brown|茶色|茶色い",
    "pink|ピンク|ピンクの",
)
COLOURS = tuple(tuple(c.split("|")) for c in COLOUR_NAMES)  # (English, Japanese noun, Japanese attribute)
TOOLS = _things("""
hammer|hammers|金づち|本
saw|saws|のこぎり|本
brush|brushes|筆|本
knife|knives|包丁|本
spoon|spoons|スプーン|本
""")
CLOTHES = _things("""
shirt|shirts|シャツ|枚
coat|coats|コート|着
skirt|skirts|スカート|枚
sock|socks|靴下|足
shoe|shoes|靴|足
""")
VEHICLES = _things("""
car|cars|車|台
bus|buses|バス|台
train|trains|電車|本
boat|boats|船|隻
bicycle|bicycles|自転車|台
plane|planes|飛行機|機
""")
KINDS: tuple[tuple[str, str, str, tuple[Thing, ...]], ...] = (
    ("animal", "animals", "動物", ANIMALS),
    ("fruit", "fruits", "果物", FRUITS),
    ("tool", "tools", "道具", TOOLS),
    ("vehicle", "vehicles", "乗り物", VEHICLES),
    ("clothing", "clothes", "服", CLOTHES[:3]),
)


@dataclass(frozen=True, slots=True)
class Place:
    en: str
    at: str  # "in the park"
    to: str  # "to the park"
    ja: str

    @property
    def key(self) -> str:
        return self.en


def _place(en: str, preposition: str, ja: str) -> Place:
    return Place(en, f"{preposition} the {en}", f"to the {en}", ja)


PLACES = tuple(
    _place(*row)
    for row in (
        ("park", "in", "公園"),
        ("school", "at", "学校"),
        ("library", "in", "図書館"),
        ("shop", "in", "店"),
        ("station", "at", "駅"),
        ("river", "by", "川"),
        ("sea", "by", "海"),
        ("forest", "in", "森"),
        ("garden", "in", "庭"),
        ("kitchen", "in", "台所"),
        ("farm", "on", "農場"),
        ("bridge", "on", "橋"),
        ("market", "at", "市場"),
        ("museum", "in", "博物館"),
        ("hospital", "in", "病院"),
        ("zoo", "at", "動物園"),
        ("lake", "by", "湖"),
        ("hill", "on", "丘"),
    )
)
WEATHERS = (
    ("sunny", "晴れた"),
    ("rainy", "雨の"),
    ("windy", "風の強い"),
    ("cold", "寒い"),
    ("warm", "暖かい"),
    ("cloudy", "曇りの"),
)
DAYPARTS = (("morning", "朝"), ("afternoon", "午後"), ("evening", "夕方"))
DAYS = (
    ("Monday", "月曜日"), ("Tuesday", "火曜日"), ("Wednesday", "水曜日"), ("Thursday", "木曜日"),
    ("Friday", "金曜日"), ("Saturday", "土曜日"), ("Sunday", "日曜日"),
)  # fmt: skip
MONTHS = tuple(
    (name, f"{i}月")
    for i, name in enumerate(
        "January February March April May June July August September October November December".split(), 1
    )
)
SEASONS = (("spring", "春"), ("summer", "夏"), ("autumn", "秋"), ("winter", "冬"))

OPPOSITES_EN = (
    "hot cold|big small|long short|up down|day night|happy sad|fast slow|open closed|new old|full empty|wet dry|"
    "hard soft|light dark|high low|early late|clean dirty|good bad|near far|left right|strong weak|rich poor|"
    "thick thin|loud quiet|in out|first last|young old|easy difficult|heavy light|true false|sweet bitter|"
    "warm cool|wide narrow|deep shallow|begin end|buy sell|come go|give take|laugh cry|push pull|win lose"
)
OPPOSITES_JA = (
    "熱い 冷たい|大きい 小さい|長い 短い|上 下|昼 夜|うれしい 悲しい|速い 遅い|新しい 古い|明るい 暗い|高い 低い|近い 遠い|"
    "左 右|強い 弱い|良い 悪い|重い 軽い|太い 細い|多い 少ない|暑い 寒い|広い 狭い|深い 浅い|前 後ろ|中 外|始まる 終わる|買う 売る|"
    "行く 来る|笑う 泣く|押す 引く|勝つ 負ける|開ける 閉める|入る 出る|簡単 難しい|朝 晩|北 南|東 西|厚い 薄い|硬い 柔らかい|"
    "乗る 降りる|起きる 寝る|始め 終わり|表 裏"
)


def _opposites(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(pair.split()) for pair in text.split("|")]
    seen: dict[str, str] = {}
    for a, b in pairs:  # a word with two opposites ("old", "light") is asked in one direction only
        seen.setdefault(a, b)
        seen.setdefault(b, a)
    doubled = {"old", "light"}
    return tuple((a, b) for a, b in seen.items() if a not in doubled)


OPPOSITES = {"en": _opposites(OPPOSITES_EN), "ja": _opposites(OPPOSITES_JA)}

# What the world is like: (English thing, English value, Japanese thing, Japanese value).
COLOUR_FACTS = (
    ("snow", "white", "雪", "白"), ("the sky on a clear day", "blue", "晴れた空", "青"), ("grass", "green", "草", "緑"),
    ("a banana", "yellow", "バナナ", "黄色"), ("a tomato", "red", "トマト", "赤"), ("the night sky", "black", "夜空", "黒"),
    ("milk", "white", "牛乳", "白"), ("a lemon", "yellow", "レモン", "黄色"), ("a frog", "green", "かえる", "緑"),
    ("the sea", "blue", "海", "青"), ("a strawberry", "red", "いちご", "赤"), ("chocolate", "brown", "チョコレート", "茶色"),
    ("a crow", "black", "からす", "黒"), ("a leaf in summer", "green", "夏の葉っぱ", "緑"),
    ("a cherry blossom", "pink", "桜の花", "ピンク"), ("a bear", "brown", "熊", "茶色"), ("coal", "black", "石炭", "黒"),
    ("rice", "white", "ご飯", "白"), ("a sunflower", "yellow", "ひまわり", "黄色"), ("fire", "red", "火", "赤"),
)  # fmt: skip
SOUND_FACTS = (
    ("cat", "meow", "猫", "ニャーニャー"), ("dog", "woof", "犬", "ワンワン"), ("cow", "moo", "牛", "モーモー"),
    ("duck", "quack", "あひる", "ガーガー"), ("pig", "oink", "豚", "ブーブー"), ("sheep", "baa", "羊", "メーメー"),
    ("mouse", "squeak", "ねずみ", "チューチュー"), ("frog", "ribbit", "かえる", "ケロケロ"), ("bird", "tweet", "鳥", "チュンチュン"),
    ("lion", "roar", "ライオン", "ガオー"), ("horse", "neigh", "馬", "ヒヒーン"), ("wolf", "howl", "おおかみ", "アオーン"),
)  # fmt: skip
LEGS_FACTS = (
    ("a cat", "4", "猫", "4"), ("a dog", "4", "犬", "4"), ("a bird", "2", "鳥", "2"), ("a horse", "4", "馬", "4"),
    ("a duck", "2", "あひる", "2"), ("a person", "2", "人", "2"), ("an ant", "6", "あり", "6"), ("a spider", "8", "くも", "8"),
    ("a bee", "6", "はち", "6"), ("a fish", "0", "魚", "0"), ("a snake", "0", "へび", "0"), ("an octopus", "8", "たこ", "8"),
    ("a cow", "4", "牛", "4"), ("an owl", "2", "ふくろう", "2"),
)  # fmt: skip
USE_FACTS = (
    ("write", "pencil", "字を書く", "鉛筆"), ("cut paper", "scissors", "紙を切る", "はさみ"), ("eat soup", "spoon", "スープを飲む", "スプーン"),
    ("open a lock", "key", "錠を開ける", "鍵"), ("stay dry in the rain", "umbrella", "雨の日に外を歩く", "傘"),
    ("tell the time", "clock", "時間を知る", "時計"), ("sleep", "bed", "寝る", "ベッド"), ("drink tea", "cup", "お茶を飲む", "コップ"),
    ("see in the dark", "lamp", "暗い所で物を見る", "ランプ"), ("sweep the floor", "broom", "床を掃く", "ほうき"),
    ("hit a nail", "hammer", "釘を打つ", "金づち"), ("cut wood", "saw", "木を切る", "のこぎり"), ("read", "book", "読む", "本"),
    ("brush your teeth", "toothbrush", "歯を磨く", "歯ブラシ"),
)  # fmt: skip

# Words to spell. The Japanese ones are in kana, so that "letter by letter" has one answer.
SPELL_EN = (
    "cat dog sun cup hat pig cow fox bee egg map key pen box bed red sea car bus boat bird fish duck frog bear lion milk cake "
    "tree leaf moon star snow rain wind door book ball kite ring bell lamp drum blue pink green white black brown apple bread "
    "house chair table water river stone train plane horse sheep mouse lemon peach melon grape music night light flower garden "
    "school market winter summer spring autumn orange banana rabbit monkey pencil letter family friend window kitchen station"
).split()
SPELL_JA = (
    "いぬ ねこ とり うま うし ぶた さる くま かめ はな つき ほし ゆき あめ かぜ くも やま かわ うみ もり そら いけ にわ いえ まど かぎ ほん かさ "
    "はこ いす つくえ くつ たまご さかな りんご みかん いちご ばなな すいか ぶどう とまと きつね うさぎ かえる ねずみ あひる ひつじ たぬき らくだ "
    "さくら もみじ ひまわり にんじん たけのこ くるま でんわ でんき とけい めがね えんぴつ はさみ かばん ぼうし てがみ ちず すずめ からす つばめ "
    "おにぎり みそしる さんぽ おんがく がっこう としょかん ともだち"
).split()

# English word <-> Japanese word, beyond the tables above.
TRANSLATE = tuple(
    {
        **{t.en: t.ja for t in OBJECTS + ANIMALS + FRUITS + FOODS + SMALL + TOOLS + CLOTHES + VEHICLES},
        **{p.en: p.ja for p in PLACES},
        **dict(SEASONS),
        **{c[0]: c[1] for c in COLOURS},
        **{
            "water": "水",
            "milk": "牛乳",
            "bread": "パン",
            "fish": "魚",
            "tree": "木",
            "moon": "月",
            "sun": "太陽",
            "rain": "雨",
        },
        **{
            "snow": "雪",
            "wind": "風",
            "house": "家",
            "door": "ドア",
            "window": "窓",
            "friend": "友だち",
            "teacher": "先生",
        },
        **{
            "mother": "母",
            "father": "父",
            "music": "音楽",
            "hand": "手",
            "eye": "目",
            "mountain": "山",
            "sky": "空",
        },
    }.items()
)
