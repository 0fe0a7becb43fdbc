"""What can happen in a story: plots as beats, each beat with several English and Japanese wordings, and questions on them.

Fields: {n} hero, {f} friend, {he} {He} {his} {him} the hero's pronouns, {fhe} {fHe} {fhis} {fhim} the friend's;
{place} {at} {to} and {place2} {at2} {to2}; {o} a thing ("red ball"), {a} with its article, {o1} without the colour;
{animal} {an_animal}; {food}; {k} a number; {weather} {day} {part}. Beat names ending in "?" may be left out.
A question is (beat that tells it, field that answers it, questions, replies).
"""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Beat:
    name: str
    en: tuple[str, ...]
    ja: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    beat: str
    field: str
    en: tuple[str, ...]
    en_reply: tuple[str, ...]
    ja: tuple[str, ...]
    ja_reply: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    name: str
    beats: tuple[Beat, ...]
    asks: tuple[Ask, ...]


OPENING = Beat(
    "open",
    (
        "One {weather} {part}, {n} went {to}.",
        "It was a {weather} {part}. {n} walked {to}.",
        "On {day}, {n} went {to}.",
        "Once upon a time, there was a {girl} named {n}. One {part}, {he} went {to}.",
        "{n} was a little {girl}. One {weather} {part}, {he} went {to}.",
        "On a {weather} {day}, {n} walked {to}.",
    ),
    (
        "ある{weather}{part}、{n}は{place}へ行きました。",
        "{weather}{part}のことです。{n}は{place}へ行きました。",
        "{day}に、{n}は{place}へ行きました。",
        "昔々、{n}という{girl}がいました。ある{part}、{n}は{place}へ出かけました。",
        "{n}は小さな{girl}です。ある{weather}{part}、{place}へ出かけました。",
        "{weather}{day}に、{n}は{place}まで歩きました。",
    ),
)
WHERE_GO = Ask(
    "open", "place",
    ("Where did {n} go?", "Which place did {n} go to?", "What place did {n} visit?"),
    ("{n} went {to}.", "{He} went {to}."),
    ("{n}はどこへ行きましたか？", "{n}が行った場所はどこですか？", "{n}はどこに行きましたか？"),
    ("{n}は{place}へ行きました。", "{place}です。", "{place}へ行きました。"),
)  # fmt: skip
ENDINGS = Beat(
    "end?",
    (
        "It was a good day.", "{n} went home with a smile.", "That night, {n} slept very well.", "{n} never forgot that day.",
        "At home, {n} told {his} mother everything.", "From that day on, {n} and {f} were the best of friends.",
    ),
    (
        "とてもいい一日でした。", "{n}は笑顔で家に帰りました。", "その夜、{n}はぐっすり眠りました。", "{n}はその日のことをずっと忘れませんでした。",
        "家に帰ると、{n}はお母さんに全部話しました。", "その日から、{n}と{f}は一番の友だちになりました。",
    ),
)  # fmt: skip

PLOTS = (
    Plot(
        "lost",
        (
            OPENING,
            Beat(
                "with",
                ("{He} had {a} with {him}.", "{He} took {his} {o}.", "In {his} hand was {a}."),
                ("手には{o}を持っていました。", "お気に入りの{o}も一緒です。", "{o}を持って行きました。"),
            ),
            Beat(
                "play?",
                (
                    "{He} played there for a long time.",
                    "{He} looked at the trees and the sky.",
                    "There was so much to see.",
                ),
                ("そこで長い間遊びました。", "木や空をながめました。", "楽しい物がたくさんありました。"),
            ),
            Beat(
                "lose",
                (
                    "But then the {o1} was gone!",
                    "Then {he} could not find the {o1}.",
                    "Suddenly, {he} saw that the {o1} was not there.",
                ),
                (
                    "ところが、{o1}がなくなってしまいました。",
                    "気がつくと、{o1}がありません。",
                    "すると、{o1}が見つからなくなりました。",
                ),
            ),
            Beat(
                "sad?",
                ("{n} was very sad.", '"Oh no!" said {n}. "Where is my {o1}?"', "{He} began to cry."),
                (
                    "{n}はとても悲しくなりました。",
                    "「ああ、{o1}はどこだろう」と{n}は言いました。",
                    "{n}は泣きそうになりました。",
                ),
            ),
            Beat(
                "friend",
                (
                    '{f} came and said, "I will help you."',
                    'Then {n} met {f}. "Let us look together," said {f}.',
                    '{f} saw {him} and asked, "What is wrong?"',
                ),
                (
                    "そこへ{f}が来て、「手伝うよ」と言いました。",
                    "その時、{f}に会いました。「一緒に探そう」と{f}は言いました。",
                    "{f}が「どうしたの」と聞きました。",
                ),
            ),
            Beat(
                "look?",
                ("They looked everywhere.", "They looked under the chairs and behind the trees."),
                ("二人はあちこちを探しました。", "二人は椅子の下や木の後ろを探しました。"),
            ),
            Beat(
                "find",
                (
                    "At last, {f} found it {at2}.",
                    "In the end, {f} found the {o1} {at2}.",
                    "After some time, {f} found it {at2}.",
                ),
                (
                    "とうとう、{f}が{place2}で見つけました。",
                    "最後に、{f}が{place2}で{o1}を見つけました。",
                    "しばらくして、{f}が{place2}で見つけてくれました。",
                ),
            ),
            Beat(
                "thank",
                (
                    '"Thank you, {f}!" said {n}.',
                    "{n} was so happy and thanked {f}.",
                    '"You are a good friend," said {n}.',
                ),
                (
                    "「ありがとう、{f}」と{n}は言いました。",
                    "{n}は大喜びで、{f}にお礼を言いました。",
                    "「{f}は本当にいい友だちだね」と{n}は言いました。",
                ),
            ),
            ENDINGS,
        ),
        (
            WHERE_GO,
            Ask(
                "lose",
                "o1",
                ("What did {n} lose?", "Which thing did {n} lose?"),
                ("{n} lost the {o1}.", "{He} lost {his} {o1}."),
                ("{n}は何をなくしましたか？", "{n}がなくした物は何ですか？"),
                ("{n}は{o1}をなくしました。", "{o1}です。"),
            ),
            Ask(
                "find",
                "f",
                ("Who found the {o1}?", "Who helped {n}?"),
                ("{f} found it.", "It was {f}."),
                ("{o1}を見つけたのは誰ですか？", "誰が{n}を手伝いましたか？"),
                ("{f}です。", "{f}が見つけました。"),
            ),
            Ask(
                "find",
                "place2",
                ("Where was the {o1}?", "Where did they find the {o1}?"),
                ("It was {at2}.", "They found it {at2}."),
                ("{o1}はどこにありましたか？", "{o1}はどこで見つかりましたか？"),
                ("{place2}にありました。", "{place2}です。"),
            ),
        ),
    ),
    Plot(
        "found",
        (
            OPENING,
            Beat(
                "see",
                (
                    "On the ground, {he} saw {a}.",
                    "There {he} found {a}.",
                    "Something was lying on the ground. It was {a}.",
                ),
                (
                    "地面に{o}が落ちていました。",
                    "そこで{o}を見つけました。",
                    "何かが落ちています。それは{o}でした。",
                ),
            ),
            Beat(
                "think?",
                (
                    '"Whose {o1} is this?" {he} asked.',
                    '"Somebody must be looking for it," {he} thought.',
                    "It was very pretty.",
                ),
                (
                    "「これは誰の{o1}だろう」と{n}は言いました。",
                    "「きっと誰かが探している」と{n}は思いました。",
                    "とてもきれいな{o1}でした。",
                ),
            ),
            Beat(
                "ask",
                (
                    "{n} went {to2} and asked everybody.",
                    "So {he} took it and went {to2}.",
                    "{He} carried it {to2}.",
                ),
                (
                    "{n}は{place2}へ行って、みんなに聞きました。",
                    "{n}はそれを持って{place2}へ行きました。",
                    "そこで、{place2}まで持って行きました。",
                ),
            ),
            Beat(
                "meet",
                (
                    "There, {f} was looking for {fhis} {o1}.",
                    "{f} was there. {fHe} looked sad.",
                    "There {he} met {f}, who was crying.",
                ),
                (
                    "そこでは、{f}が{o1}を探していました。",
                    "{f}がいました。悲しそうな顔をしています。",
                    "そこで、泣いている{f}に会いました。",
                ),
            ),
            Beat(
                "give",
                (
                    '"Is this yours?" asked {n}, and gave the {o1} to {f}.',
                    "{n} gave {f} the {o1}.",
                    '"Here you are," said {n} and gave it to {f}.',
                ),
                (
                    "「これはあなたの？」と聞いて、{n}は{o1}を{f}に渡しました。",
                    "{n}は{f}に{o1}を返しました。",
                    "「はい、どうぞ」と{n}は{f}に渡しました。",
                ),
            ),
            Beat(
                "thank",
                (
                    "{f} smiled and gave {him} {a_food}.",
                    '"Thank you so much!" said {f}, and gave {n} {a_food}.',
                    "To say thank you, {f} gave {n} {a_food}.",
                ),
                (
                    "{f}は笑って、お礼に{food}をくれました。",
                    "「本当にありがとう」と{f}は言って、{food}をくれました。",
                    "お礼に、{f}は{n}に{food}をくれました。",
                ),
            ),
            ENDINGS,
        ),
        (
            WHERE_GO,
            Ask(
                "see",
                "o1",
                ("What did {n} find?", "What was on the ground?"),
                ("{n} found {a}.", "It was {a}."),
                ("{n}は何を見つけましたか？", "地面に落ちていた物は何ですか？"),
                ("{o}を見つけました。", "{o}です。"),
            ),
            Ask(
                "give",
                "f",
                ("Who got the {o1} back?", "Whose {o1} was it?"),
                ("It was {f}.", "{f} got it back."),
                ("{o1}は誰の物でしたか？", "{n}は{o1}を誰に渡しましたか？"),
                ("{f}の物でした。", "{f}です。"),
            ),
            Ask(
                "thank",
                "food",
                ("What did {f} give {n}?", "What did {n} get from {f}?"),
                ("{f} gave {him} {a_food}.", "It was {a_food}."),
                ("{f}は{n}に何をくれましたか？", "{n}はお礼に何をもらいましたか？"),
                ("{food}をくれました。", "{food}です。"),
            ),
        ),
    ),
    Plot(
        "animal",
        (
            OPENING,
            Beat(
                "see",
                (
                    "There {he} saw a little {animal}.",
                    "A small {animal} was sitting there.",
                    "{He} heard a sound. It was a little {animal}.",
                ),
                (
                    "そこで小さな{animal}を見ました。",
                    "そこに小さな{animal}がいました。",
                    "小さな音がしました。小さな{animal}でした。",
                ),
            ),
            Beat(
                "state",
                (
                    "The {animal} was hungry.",
                    "The {animal} looked hungry and cold.",
                    "It was all alone and very hungry.",
                ),
                (
                    "{animal}はおなかをすかせていました。",
                    "{animal}はおなかがすいて、寒そうでした。",
                    "ひとりぼっちで、とてもおなかをすかせています。",
                ),
            ),
            Beat(
                "food",
                (
                    "{n} gave it {a_food}.",
                    "{He} had {a_food} in {his} bag and gave it to the {animal}.",
                    '"Are you hungry?" asked {n}, and gave it {a_food}.',
                ),
                (
                    "{n}は{food}をあげました。",
                    "{n}はかばんから{food}を出して、{animal}にあげました。",
                    "「おなかがすいたの」と聞いて、{n}は{food}をあげました。",
                ),
            ),
            Beat(
                "eat?",
                (
                    "The {animal} ate it all.",
                    "It ate and ate until nothing was left.",
                    "The {animal} was happy now.",
                ),
                (
                    "{animal}は全部食べました。",
                    "{animal}は残さず食べました。",
                    "{animal}はうれしそうでした。",
                ),
            ),
            Beat(
                "follow",
                (
                    "Then the {animal} followed {him} home.",
                    "After that, the {animal} went home with {him}.",
                    "The {animal} did not want to go away. It walked home with {n}.",
                ),
                (
                    "それから、{animal}は家までついて来ました。",
                    "その後、{animal}は{n}と一緒に家に帰りました。",
                    "{animal}は{n}のそばを離れません。一緒に家まで歩きました。",
                ),
            ),
            Beat(
                "friend?",
                (
                    '{f} came to see the {animal}. "How cute!" said {f}.',
                    "The next day, {f} came to play with the {animal}.",
                ),
                (
                    "{f}が{animal}を見に来ました。「かわいいね」と{f}は言いました。",
                    "次の日、{f}が{animal}と遊びに来ました。",
                ),
            ),
            Beat(
                "last",
                (
                    "Now they play together every day.",
                    "They became good friends.",
                    "From then on, {n} was never alone.",
                ),
                (
                    "今では毎日一緒に遊んでいます。",
                    "{n}と{animal}は仲良しになりました。",
                    "それから{n}は、もうさびしくありませんでした。",
                ),
            ),
        ),
        (
            WHERE_GO,
            Ask(
                "see",
                "animal",
                ("Which animal did {n} see?", "What animal was there?"),
                ("{n} saw {an_animal}.", "It was {an_animal}."),
                ("{n}はどんな動物を見ましたか？", "そこにいた動物は何ですか？"),
                ("{animal}です。", "{animal}を見ました。"),
            ),
            Ask(
                "food",
                "food",
                ("What did {n} give to the {animal}?", "What did the {animal} eat?"),
                ("{n} gave it {a_food}.", "It was {a_food}."),
                ("{n}は{animal}に何をあげましたか？", "{animal}は何を食べましたか？"),
                ("{food}をあげました。", "{food}です。"),
            ),
        ),
    ),
    Plot(
        "birthday",
        (
            Beat(
                "open",
                ("It was {f}'s birthday.", "Today was the birthday of {f}.", "On {day}, {f} had a birthday."),
                ("今日は{f}の誕生日です。", "{day}は{f}の誕生日でした。", "その日は{f}の誕生日でした。"),
            ),
            Beat(
                "want",
                (
                    "{n} wanted to give {fhim} a present.",
                    '"I need a present," thought {n}.',
                    "{n} was a good friend and wanted to make {fhim} happy.",
                ),
                (
                    "{n}はプレゼントをあげたいと思いました。",
                    "「プレゼントがいるな」と{n}は思いました。",
                    "{n}は{f}を喜ばせたいと思いました。",
                ),
            ),
            Beat(
                "shop",
                ("So {he} went {to}.", "In the {part}, {he} went {to} to look for one.", "{He} walked {to}."),
                (
                    "そこで、{place}へ行きました。",
                    "{part}、プレゼントを探しに{place}へ行きました。",
                    "{n}は{place}まで歩きました。",
                ),
            ),
            Beat(
                "buy",
                (
                    "There {he} found {a}.",
                    "{He} saw many things, and chose {a}.",
                    "After a long time, {he} chose {a}.",
                ),
                (
                    "そこで{o}を見つけました。",
                    "いろいろな物を見て、{o}を選びました。",
                    "長い間考えて、{o}に決めました。",
                ),
            ),
            Beat(
                "card?",
                ("{He} also wrote a card.", "{He} put it in a pretty box.", "{n} sang all the way back."),
                ("カードも書きました。", "きれいな箱に入れました。", "帰り道、{n}はずっと歌っていました。"),
            ),
            Beat(
                "give",
                (
                    '"Happy birthday, {f}!" said {n} and gave {fhim} the {o1}.',
                    '{n} gave the {o1} to {f}. "Happy birthday!"',
                    "When {f} opened the door, {n} gave {fhim} the {o1}.",
                ),
                (
                    "「誕生日おめでとう、{f}」と言って、{n}は{o1}をあげました。",
                    "{n}は{f}に{o1}をあげました。「おめでとう」",
                    "{f}がドアを開けると、{n}は{o1}を渡しました。",
                ),
            ),
            Beat(
                "glad",
                ("{f} was very happy.", '"It is beautiful! Thank you!" said {f}.', "{f} laughed with joy."),
                (
                    "{f}はとても喜びました。",
                    "「すてき。ありがとう」と{f}は言いました。",
                    "{f}はうれしくて笑いました。",
                ),
            ),
            Beat(
                "cake?",
                ("Then they ate {a_food} together.", "They sat in the garden and ate {a_food}."),
                ("それから、一緒に{food}を食べました。", "二人は庭で{food}を食べました。"),
            ),
            ENDINGS,
        ),
        (
            Ask(
                "open",
                "f",
                ("Whose birthday was it?", "Who had a birthday?"),
                ("It was {f}'s birthday.", "{f} had a birthday."),
                ("誰の誕生日でしたか？", "誕生日だったのは誰ですか？"),
                ("{f}の誕生日でした。", "{f}です。"),
            ),
            Ask(
                "shop",
                "place",
                ("Where did {n} go to look for a present?", "Where did {n} go?"),
                ("{n} went {to}.", "{He} went {to}."),
                ("{n}はプレゼントを探しにどこへ行きましたか？", "{n}はどこへ行きましたか？"),
                ("{place}へ行きました。", "{place}です。"),
            ),
            Ask(
                "buy",
                "o1",
                ("What was the present?", "What did {n} give {f}?"),
                ("It was {a}.", "{n} gave {fhim} {a}."),
                ("プレゼントは何でしたか？", "{n}は{f}に何をあげましたか？"),
                ("{o}でした。", "{o}です。"),
            ),
            Ask(
                "cake",
                "food",
                ("What did they eat?",),
                ("They ate {a_food}.",),
                ("二人は何を食べましたか？",),
                ("{food}を食べました。", "{food}です。"),
            ),
        ),
    ),
    Plot(
        "rain",
        (
            Beat(
                "open",
                (
                    "{n} wanted to play {at} with {f}.",
                    "On {day}, {n} and {f} wanted to play {at}.",
                    "{n} and {f} were on their way {to}.",
                ),
                (
                    "{n}は{f}と{place}で遊ぼうと思いました。",
                    "{day}に、{n}と{f}は{place}で遊ぶことにしました。",
                    "{n}と{f}は{place}へ向かっていました。",
                ),
            ),
            Beat(
                "rain",
                (
                    "But it began to rain.",
                    "Then dark clouds came, and it began to rain.",
                    "Suddenly, the rain came down.",
                ),
                (
                    "ところが、雨が降り始めました。",
                    "すると黒い雲が出て、雨が降ってきました。",
                    "急に雨が降りだしました。",
                ),
            ),
            Beat(
                "wet?",
                (
                    "They got very wet.",
                    '"Oh no, my shoes are wet!" said {n}.',
                    "They ran as fast as they could.",
                ),
                (
                    "二人はびしょぬれになりました。",
                    "「ああ、靴がぬれちゃった」と{n}は言いました。",
                    "二人は一生懸命走りました。",
                ),
            ),
            Beat(
                "house",
                ("So they went {to2}.", "They ran {to2} and waited there.", '"Let us go {to2}," said {f}.'),
                (
                    "そこで、二人は{place2}へ行きました。",
                    "二人は{place2}まで走って、そこで待ちました。",
                    "「{place2}へ行こう」と{f}は言いました。",
                ),
            ),
            Beat(
                "do",
                (
                    "There they played with {a}.",
                    "{f} had {a}, and they played with it.",
                    "They found {a} and played with it.",
                ),
                (
                    "そこで{o}で遊びました。",
                    "{f}が{o}を持っていたので、それで遊びました。",
                    "{o}を見つけて、二人で遊びました。",
                ),
            ),
            Beat(
                "stop",
                (
                    "Soon the rain stopped, and the sun came out.",
                    "After an hour, the sky was blue again.",
                    "Then the rain stopped. There was a rainbow in the sky.",
                ),
                (
                    "まもなく雨がやんで、太陽が出ました。",
                    "一時間後、空はまた青くなりました。",
                    "やがて雨がやみ、空に虹が出ました。",
                ),
            ),
            Beat(
                "glad?",
                (
                    '"Look how pretty!" said {n}.',
                    "They went outside again and laughed.",
                    "{n} was not sad about the rain any more.",
                ),
                (
                    "「きれいだね」と{n}は言いました。",
                    "二人はまた外に出て、笑いました。",
                    "{n}はもう雨がいやではありませんでした。",
                ),
            ),
            ENDINGS,
        ),
        (
            Ask(
                "open",
                "place",
                ("Where did they want to play?", "Where did {n} want to play?"),
                ("They wanted to play {at}.", "It was {at}."),
                ("二人はどこで遊ぶつもりでしたか？", "{n}はどこで遊びたかったですか？"),
                ("{place}です。", "{place}で遊ぶつもりでした。"),
            ),
            Ask(
                "house",
                "place2",
                ("Where did they go in the rain?", "Where did they go when it rained?"),
                ("They went {to2}.", "They ran {to2}."),
                ("雨が降って、二人はどこへ行きましたか？", "雨の時、二人はどこにいましたか？"),
                ("{place2}へ行きました。", "{place2}です。"),
            ),
            Ask(
                "do",
                "o1",
                ("What did they play with?", "Which thing did they play with?"),
                ("They played with {a}.", "It was {a}."),
                ("二人は何で遊びましたか？", "二人が遊んだ物は何ですか？"),
                ("{o}で遊びました。", "{o}です。"),
            ),
            Ask(
                "open",
                "f",
                ("Who was with {n}?", "Who was the friend of {n}?"),
                ("It was {f}.", "{f} was with {him}."),
                ("{n}と一緒にいたのは誰ですか？", "{n}の友だちは誰ですか？"),
                ("{f}です。",),
            ),
        ),
    ),
    Plot(
        "learn",
        (
            Beat(
                "open",
                (
                    "{n} could not {skill}.",
                    "There was a {girl} named {n}. {He} could not {skill}.",
                    "{n} wanted to learn to {skill}.",
                ),
                (
                    "{n}は{skill}ことができませんでした。",
                    "{n}という{girl}がいました。{n}は{skill}ことができませんでした。",
                    "{n}は{skill}ことができるようになりたいと思いました。",
                ),
            ),
            Beat(
                "place",
                (
                    "So {he} went {to} to try it.",
                    "Every {part}, {he} tried it {at}.",
                    "One {weather} {part}, {he} tried it {at}.",
                ),
                (
                    "そこで、{place}へ行って練習しました。",
                    "毎日、{place}で練習しました。",
                    "ある{weather}{part}、{place}で練習しました。",
                ),
            ),
            Beat(
                "fail",
                (
                    "The first time, it did not go well.",
                    "It was very difficult.",
                    "{He} tried {k} times, but it did not work.",
                ),
                (
                    "初めはうまくいきませんでした。",
                    "とても難しかったです。",
                    "{k}回やってみましたが、できませんでした。",
                ),
            ),
            Beat(
                "sad?",
                ('"I cannot do it," said {n}.', "{n} was sad and tired.", "{He} wanted to stop."),
                (
                    "「できない」と{n}は言いました。",
                    "{n}は悲しくて、疲れてしまいました。",
                    "{n}はやめようと思いました。",
                ),
            ),
            Beat(
                "help",
                (
                    'Then {f} came. "I will show you," said {f}.',
                    'But {f} said, "Try once more. I will help you."',
                    "{f} saw it and helped {him}.",
                ),
                (
                    "そこへ{f}が来ました。「教えてあげる」と{f}は言いました。",
                    "でも{f}は「もう一度やってみよう。手伝うよ」と言いました。",
                    "それを見て、{f}が手伝ってくれました。",
                ),
            ),
            Beat(
                "try",
                (
                    "{n} tried again and again.",
                    "They worked together until the evening.",
                    "{n} listened well and tried once more.",
                ),
                (
                    "{n}は何度もやってみました。",
                    "二人は夕方まで一緒に練習しました。",
                    "{n}はよく聞いて、もう一度やってみました。",
                ),
            ),
            Beat(
                "can",
                (
                    "And then {he} could do it!",
                    "At last, {n} could {skill}!",
                    "After {k} days, {n} could {skill}.",
                ),
                (
                    "すると、できました。",
                    "とうとう、{n}は{skill}ことができました。",
                    "{k}日後、{n}は{skill}ことができるようになりました。",
                ),
            ),
            Beat(
                "glad",
                (
                    '"I did it!" said {n}.',
                    "{n} was very proud.",
                    '{f} was happy too. "Well done!" {fhe} said.',
                ),
                (
                    "「やった、できたよ」と{n}は言いました。",
                    "{n}はとてもうれしくなりました。",
                    "{f}も喜んで、「よくできたね」と言いました。",
                ),
            ),
            ENDINGS,
        ),
        (
            Ask(
                "help",
                "f",
                ("Who helped {n}?", "Who came to help?"),
                ("{f} helped {him}.", "It was {f}."),
                ("誰が{n}を手伝いましたか？", "{n}を助けたのは誰ですか？"),
                ("{f}です。", "{f}が手伝いました。"),
            ),
            Ask(
                "place",
                "place",
                ("Where did {n} try it?", "In which place did {n} learn it?"),
                ("{He} tried it {at}.", "It was {at}."),
                ("{n}はどこで練習しましたか？", "練習した場所はどこですか？"),
                ("{place}で練習しました。", "{place}です。"),
            ),
        ),
    ),
    Plot(
        "share",
        (
            Beat(
                "open",
                (
                    "{n} had {a_food}.",
                    "On {day}, {n} took {a_food} {to}.",
                    "{n} was sitting {at} with {a_food}.",
                ),
                (
                    "{n}は{food}を持っていました。",
                    "{day}に、{n}は{food}を持って{place}へ行きました。",
                    "{n}は{food}を持って、{place}にすわっていました。",
                ),
            ),
            Beat(
                "hungry",
                (
                    "{f} was there too, and {fhe} was hungry.",
                    "Then {f} came by. {fHe} had nothing to eat.",
                    'Next to {him} sat {f}. "I am so hungry," said {f}.',
                ),
                (
                    "そこに{f}もいました。おなかがすいています。",
                    "そこへ{f}が来ました。食べる物がありません。",
                    "となりに{f}がいました。「おなかがすいた」と{f}は言いました。",
                ),
            ),
            Beat(
                "think?",
                ("{n} thought for a moment.", '"There is only one," thought {n}.', "{n} was hungry too."),
                (
                    "{n}は少し考えました。",
                    "「一つしかない」と{n}は思いました。",
                    "{n}もおなかがすいていました。",
                ),
            ),
            Beat(
                "share",
                (
                    "Then {he} gave half of it to {f}.",
                    '"Let us share," said {n}, and gave half to {f}.',
                    "So {n} cut it in two. One half was for {f}.",
                ),
                (
                    "それから、半分を{f}にあげました。",
                    "「分けよう」と言って、{n}は半分を{f}にあげました。",
                    "{n}は二つに分けて、一つを{f}にあげました。",
                ),
            ),
            Beat(
                "eat",
                ("They ate together and talked.", "It tasted very good.", "Together it tasted much better."),
                (
                    "二人は話しながら食べました。",
                    "とてもおいしかったです。",
                    "一緒に食べると、もっとおいしくなりました。",
                ),
            ),
            Beat(
                "later",
                (
                    "The next day, {f} brought {n} {a}.",
                    "Later, {f} gave {n} {a} to say thank you.",
                    'A week later, {f} came with {a}. "This is for you," {fhe} said.',
                ),
                (
                    "次の日、{f}は{n}に{o}を持って来ました。",
                    "後で、{f}はお礼に{o}をくれました。",
                    "一週間後、{f}が{o}を持って来て、「これをあげる」と言いました。",
                ),
            ),
            ENDINGS,
        ),
        (
            Ask(
                "open",
                "food",
                ("What did {n} have?", "What did {n} share?"),
                ("{n} had {a_food}.", "It was {a_food}."),
                ("{n}は何を持っていましたか？", "{n}は何を分けましたか？"),
                ("{food}です。", "{food}を持っていました。"),
            ),
            Ask(
                "share",
                "f",
                ("Who got half of it?", "Who was hungry?"),
                ("It was {f}.", "{f} got half of it."),
                ("半分をもらったのは誰ですか？", "おなかがすいていたのは誰ですか？"),
                ("{f}です。",),
            ),
            Ask(
                "later",
                "o1",
                ("What did {f} give {n} later?", "What did {n} get from {f}?"),
                ("{f} gave {him} {a}.", "It was {a}."),
                ("{f}は後で{n}に何をくれましたか？", "{n}は{f}から何をもらいましたか？"),
                ("{o}をくれました。", "{o}です。"),
            ),
        ),
    ),
    Plot(
        "noise",
        (
            Beat(
                "open",
                (
                    "It was night. {n} was in bed.",
                    "One {weather} night, {n} could not sleep.",
                    "It was late, and {n} was reading in bed.",
                ),
                (
                    "夜のことです。{n}はベッドの中にいました。",
                    "ある{weather}夜、{n}は眠れませんでした。",
                    "夜遅く、{n}はベッドで本を読んでいました。",
                ),
            ),
            Beat(
                "hear",
                (
                    "Suddenly, {he} heard a noise from the {room}.",
                    "There was a strange sound in the {room}.",
                    "Then something moved in the {room}.",
                ),
                (
                    "急に、{room}から音が聞こえました。",
                    "{room}で変な音がしました。",
                    "すると、{room}で何かが動きました。",
                ),
            ),
            Beat(
                "afraid",
                ("{n} was afraid.", '"Who is there?" asked {n}. Nobody answered.', "{His} heart beat fast."),
                (
                    "{n}はこわくなりました。",
                    "「誰かいるの」と{n}は聞きました。返事はありません。",
                    "{n}の胸はどきどきしました。",
                ),
            ),
            Beat(
                "light",
                (
                    "{He} took a lamp and went to look.",
                    "But {he} was brave and went to the {room}.",
                    "Slowly, {he} opened the door.",
                ),
                (
                    "{n}はランプを持って、見に行きました。",
                    "でも、勇気を出して{room}へ行きました。",
                    "ゆっくりとドアを開けました。",
                ),
            ),
            Beat(
                "see",
                (
                    "It was only a little {animal}!",
                    "There sat a small {animal}.",
                    "A {animal} looked at {him} with big eyes.",
                ),
                (
                    "それは小さな{animal}でした。",
                    "そこには小さな{animal}がいました。",
                    "{animal}が大きな目で{n}を見ていました。",
                ),
            ),
            Beat(
                "eating?",
                ("It was eating {a_food}.", "The {animal} had found {a_food}."),
                ("{food}を食べているところでした。", "{animal}は{food}を見つけたのでした。"),
            ),
            Beat(
                "laugh",
                (
                    '{n} laughed. "It was only you!" {he} said.',
                    '"You are cute," said {n} and laughed.',
                    "Then {n} was not afraid any more.",
                ),
                (
                    "{n}は笑って、「君だったのか」と言いました。",
                    "「かわいいね」と言って、{n}は笑いました。",
                    "もうこわくありませんでした。",
                ),
            ),
            Beat(
                "sleep",
                (
                    "Then {he} went back to bed and slept.",
                    "After that, {n} slept well.",
                    "Soon {he} fell asleep.",
                ),
                (
                    "それから、{n}はぐっすり眠りました。",
                    "その後、{n}はよく眠れました。",
                    "まもなく{n}は眠りました。",
                ),
            ),
            Beat(
                "tell?",
                (
                    "The next day, {he} told {f} about it, and {f} laughed too.",
                    "In the morning, {n} told {f} the story.",
                ),
                ("次の日、{f}に話すと、{f}も笑いました。", "朝、{n}はその話を{f}にしました。"),
            ),
        ),
        (
            Ask(
                "hear",
                "room",
                ("Where did the noise come from?", "In which room was the sound?"),
                ("It came from the {room}.", "It was in the {room}."),
                ("音はどこから聞こえましたか？", "どの部屋で音がしましたか？"),
                ("{room}です。", "{room}から聞こえました。"),
            ),
            Ask(
                "see",
                "animal",
                ("What made the noise?", "Which animal was it?"),
                ("It was {an_animal}.", "{An_animal} made the noise."),
                ("音の正体は何でしたか？", "そこにいた動物は何ですか？"),
                ("{animal}でした。", "{animal}です。"),
            ),
            Ask(
                "eating",
                "food",
                ("What did the {animal} eat?", "What was the {animal} eating?"),
                ("It was eating {a_food}.", "It ate {a_food}."),
                ("{animal}は何を食べていましたか？",),
                ("{food}を食べていました。", "{food}です。"),
            ),
        ),
    ),
    Plot(
        "trip",
        (
            Beat(
                "open",
                (
                    "On {day}, {n} and {f} made a trip {to}.",
                    "One {weather} {part}, {n} and {f} went {to} by {vehicle}.",
                    "{n} and {f} wanted to see something new. So they went {to}.",
                ),
                (
                    "{day}に、{n}と{f}は{place}へ出かけました。",
                    "ある{weather}{part}、{n}と{f}は{vehicle}で{place}へ行きました。",
                    "{n}と{f}は何か新しい物が見たくて、{place}へ行きました。",
                ),
            ),
            Beat(
                "way?",
                (
                    "On the way, they sang songs.",
                    "The way was long, but they were happy.",
                    '"Are we there yet?" asked {n}.',
                ),
                (
                    "道では、歌を歌いました。",
                    "道は長かったけれど、二人は楽しそうでした。",
                    "「まだ着かないの」と{n}は聞きました。",
                ),
            ),
            Beat(
                "see",
                (
                    "There they saw {an_animal}.",
                    '"Look, {an_animal}!" said {f}.',
                    "The first thing they saw was {an_animal}.",
                ),
                (
                    "そこで{animal}を見ました。",
                    "「見て、{animal}だよ」と{f}は言いました。",
                    "最初に見たのは{animal}でした。",
                ),
            ),
            Beat(
                "eat",
                (
                    "At noon, they ate {a_food}.",
                    "They were hungry and shared {a_food}.",
                    "Later, they sat down and ate {a_food}.",
                ),
                (
                    "お昼に、{food}を食べました。",
                    "おなかがすいたので、{food}を分けて食べました。",
                    "その後、すわって{food}を食べました。",
                ),
            ),
            Beat(
                "buy",
                (
                    "Before they went home, {n} bought {a}.",
                    "{n} bought {a} for {his} mother.",
                    "{n} found {a} and took it home.",
                ),
                (
                    "帰る前に、{n}は{o}を買いました。",
                    "{n}はお母さんに{o}を買いました。",
                    "{n}は{o}を見つけて、持って帰りました。",
                ),
            ),
            Beat(
                "home",
                (
                    "In the evening, they came home, tired but happy.",
                    "They came home late.",
                    "It was dark when they came home.",
                ),
                (
                    "夕方、二人は疲れたけれど、楽しい気持ちで帰りました。",
                    "二人は遅くに帰って来ました。",
                    "家に着いた時は、もう暗くなっていました。",
                ),
            ),
            Beat(
                "say",
                (
                    '"Let us go again," said {f}.',
                    '"What a day!" said {n}.',
                    '"I want to go there again," said {n}.',
                ),
                (
                    "「また行こうね」と{f}は言いました。",
                    "「すてきな一日だったね」と{n}は言いました。",
                    "「もう一度行きたいな」と{n}は言いました。",
                ),
            ),
        ),
        (
            Ask(
                "open",
                "place",
                ("Where did they go?", "Where did {n} and {f} go?"),
                ("They went {to}.",),
                ("二人はどこへ行きましたか？", "{n}と{f}が行った所はどこですか？"),
                ("{place}へ行きました。", "{place}です。"),
            ),
            Ask(
                "see",
                "animal",
                ("Which animal did they see?", "What did they see there?"),
                ("They saw {an_animal}.", "It was {an_animal}."),
                ("二人はどんな動物を見ましたか？", "二人は何を見ましたか？"),
                ("{animal}を見ました。", "{animal}です。"),
            ),
            Ask(
                "eat",
                "food",
                ("What did they eat?",),
                ("They ate {a_food}.",),
                ("二人は何を食べましたか？",),
                ("{food}を食べました。", "{food}です。"),
            ),
            Ask(
                "buy",
                "o1",
                ("What did {n} take home?", "What did {n} bring home?"),
                ("{n} took {a} home.", "It was {a}."),
                ("{n}は何を持って帰りましたか？",),
                ("{o}です。", "{o}を持って帰りました。"),
            ),
        ),
    ),
    Plot(
        "garden",
        (
            Beat(
                "open",
                (
                    "{n} had a small garden.",
                    "Behind the house, {n} had a little garden.",
                    "In spring, {n} worked in the garden.",
                ),
                (
                    "{n}は小さな庭を持っていました。",
                    "家の後ろに、{n}の小さな庭がありました。",
                    "春、{n}は庭で働いていました。",
                ),
            ),
            Beat(
                "seed",
                (
                    "One {part}, {f} gave {him} {k} seeds.",
                    "On {day}, {f} gave {n} {k} seeds.",
                    '{f} came and gave {him} {k} seeds. "Try these," said {f}.',
                ),
                (
                    "ある{part}、{f}が種を{k}個くれました。",
                    "{day}に、{f}は{n}に種を{k}個あげました。",
                    "{f}が来て、種を{k}個くれました。「まいてみて」と{f}は言いました。",
                ),
            ),
            Beat(
                "plant",
                (
                    "{n} put them in the ground.",
                    "{He} planted them and gave them water.",
                    "{He} planted the seeds with care.",
                ),
                ("{n}は土に種をまきました。", "種をまいて、水をやりました。", "{n}は大切に種をまきました。"),
            ),
            Beat(
                "water",
                (
                    "Every day {he} gave them water.",
                    "{He} watched them every morning.",
                    "Each evening, {he} looked at the ground and waited.",
                ),
                ("毎日、水をやりました。", "毎朝、様子を見ました。", "夕方になると、土を見て待ちました。"),
            ),
            Beat(
                "wait?",
                (
                    "For a long time, nothing happened.",
                    '"When will they grow?" {he} asked.',
                    "It rained, and the sun came out again.",
                ),
                (
                    "長い間、何も起こりませんでした。",
                    "「いつ大きくなるのかな」と{n}は言いました。",
                    "雨が降り、また太陽が出ました。",
                ),
            ),
            Beat(
                "grow",
                (
                    "Then, one day, there were {colour} flowers!",
                    "At last, {colour} flowers came out.",
                    "In summer, the garden was full of {colour} flowers.",
                ),
                (
                    "ある日、{colourful}花が咲きました。",
                    "とうとう、{colourful}花が咲きました。",
                    "夏になると、庭は{colourful}花でいっぱいになりました。",
                ),
            ),
            Beat(
                "gift",
                (
                    "{n} took one and gave it to {f}.",
                    "{n} gave the most beautiful one to {f}.",
                    '"This one is for you," {he} said to {f}.',
                ),
                (
                    "{n}は一本取って、{f}にあげました。",
                    "{n}は一番きれいな花を{f}にあげました。",
                    "「これをあげる」と{n}は{f}に言いました。",
                ),
            ),
            Beat(
                "glad?",
                (
                    '{f} smiled. "How beautiful!"',
                    "{f} put it in water at once.",
                    "They sat in the garden until night.",
                ),
                (
                    "{f}は「きれいだね」と笑いました。",
                    "{f}はすぐに花を水に入れました。",
                    "二人は夜まで庭にいました。",
                ),
            ),
        ),
        (
            Ask(
                "seed",
                "k",
                ("How many seeds did {n} get?", "How many seeds were there?"),
                ("{n} got {k} seeds.", "There were {k} seeds."),
                ("種は何個でしたか？", "{n}は種を何個もらいましたか？"),
                ("{k}個です。", "{k}個もらいました。"),
            ),
            Ask(
                "grow",
                "colour",
                ("What colour were the flowers?", "Which colour did the flowers have?"),
                ("They were {colour}.", "The flowers were {colour}."),
                ("花は何色でしたか？", "どんな色の花が咲きましたか？"),
                ("{colour}です。", "花は{colour}でした。"),
            ),
            Ask(
                "seed",
                "f",
                ("Who gave {n} the seeds?", "Who came with the seeds?"),
                ("{f} gave {him} the seeds.", "It was {f}."),
                ("種をくれたのは誰ですか？", "誰が種を持って来ましたか？"),
                ("{f}です。", "{f}がくれました。"),
            ),
        ),
    ),
    Plot(
        "broken",
        (
            Beat(
                "open",
                (
                    "{n} was playing {at} with {a}. It was {f}'s {o1}.",
                    "{f} gave {n} {a} for a day. {n} took it {to}.",
                    "{n} had {a}. It was not {hers}; it was {f}'s {o1}.",
                ),
                (
                    "{n}は{place}で、{o}を使って遊んでいました。それは{f}の{o1}でした。",
                    "{f}は{n}に{o}を一日貸しました。{n}はそれを持って{place}へ行きました。",
                    "{n}は{o}を持っていました。それは{f}から借りた物でした。",
                ),
            ),
            Beat(
                "break",
                (
                    "Then it fell down and broke.",
                    "Suddenly it fell, and it broke.",
                    "But {he} was not careful, and it broke.",
                ),
                (
                    "すると、落ちてこわれてしまいました。",
                    "急に手から落ちて、こわれました。",
                    "でも、よく見ていなくて、こわしてしまいました。",
                ),
            ),
            Beat(
                "think",
                ('"What can I do?" thought {n}.', "{n} was very sad.", '"{f} will be angry," thought {n}.'),
                (
                    "「どうしよう」と{n}は思いました。",
                    "{n}はとても悲しくなりました。",
                    "「{f}は怒るだろうな」と{n}は思いました。",
                ),
            ),
            Beat(
                "tell",
                (
                    'But {he} went to {f} and told the truth. "I am sorry," {he} said.',
                    '{n} went to {f} at once. "I broke your {o1}. I am sorry."',
                    '"I am sorry, {f}," said {n}. "I broke it."',
                ),
                (
                    "でも、{f}の所へ行って、本当のことを話しました。「ごめんなさい」",
                    "{n}はすぐに{f}の所へ行きました。「{o1}をこわしてしまって、ごめんね」",
                    "「{f}、ごめんなさい。こわしてしまったの」と{n}は言いました。",
                ),
            ),
            Beat(
                "forgive",
                (
                    '{f} was not angry. "It is good that you told me," said {f}.',
                    '"That is all right," said {f}. "We can mend it."',
                    '{f} smiled and said, "Let us mend it together."',
                ),
                (
                    "{f}は怒りませんでした。「話してくれてありがとう」と{f}は言いました。",
                    "「大丈夫だよ。直せるよ」と{f}は言いました。",
                    "{f}は笑って、「一緒に直そう」と言いました。",
                ),
            ),
            Beat(
                "mend",
                (
                    "They took it {to2}, and soon it was as good as new.",
                    "They worked {at2} for {k} hours. Then it was as good as new.",
                    "A man {at2} helped them to mend it.",
                ),
                (
                    "二人は{place2}へ持って行きました。すぐに新しい物のようになりました。",
                    "二人は{place2}で{k}時間働きました。すると、元の通りになりました。",
                    "{place2}の人が直すのを手伝ってくれました。",
                ),
            ),
            ENDINGS,
        ),
        (
            Ask(
                "open",
                "o1",
                ("What broke?", "What did {n} break?"),
                ("It was {a}.", "{n} broke the {o1}."),
                ("何がこわれましたか？", "{n}がこわした物は何ですか？"),
                ("{o1}です。", "{o1}がこわれました。"),
            ),
            Ask(
                "open",
                "f",
                ("Whose {o1} was it?", "To whom did {n} say sorry?"),
                ("It was {f}'s {o1}.", "It was {f}."),
                ("それは誰の{o1}でしたか？", "{n}は誰に謝りましたか？"),
                ("{f}です。",),
            ),
            Ask(
                "mend",
                "place2",
                ("Where did they mend it?", "Where was it mended?"),
                ("They mended it {at2}.", "It was {at2}."),
                ("どこで直しましたか？", "二人はどこで直しましたか？"),
                ("{place2}で直しました。", "{place2}です。"),
            ),
        ),
    ),
)

# What can be learned, and where.
SKILLS = tuple(
    (en, ja, frozenset(places.split()))
    for en, ja, places in (
        ("swim", "泳ぐ", "river sea lake"),
        ("ride a bicycle", "自転車に乗る", "park hill farm"),
        ("sing", "上手に歌う", "school garden park hill"),
        ("dance", "踊る", "school garden park"),
        ("draw a horse", "馬の絵をかく", "farm school zoo"),
        ("climb a tree", "木に登る", "forest garden park"),
        ("jump high", "高く跳ぶ", "park school hill"),
        ("play the drum", "太鼓をたたく", "school garden hill"),
    )
)
ROOMS = (("kitchen", "台所"), ("garden", "庭"), ("hall", "廊下"), ("bathroom", "お風呂場"), ("attic", "屋根裏"), ("cellar", "地下室"))  # fmt: skip
