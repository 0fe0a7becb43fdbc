"""How byte-level BPE families cut text before merging, by the names that GGUF files use (`tokenizer.ggml.pre`).

The expressions are facts of the formats: they must equal those in the families' tokenizer.json files and in
llama.cpp's src/llama-vocab.cpp, or ids differ from what the model was trained on (digits first of all).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shoal.errors import ShoalError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+%s|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*%s"

_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _SPACES
)
_KANJI_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

# The letters of DeepSeek LLM / V2: cased letters of Unicode 13, as pairs first-last (a single one stands alone).
_DEEPSEEK_LLM_LETTERS = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5
3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2
118A0-118DF 1E900-1E943"""


def _character_class(ranges: str) -> str:
    return "[" + "".join("-".join(chr(int(end, 16)) for end in r.split("-")) for r in ranges.split()) + "]"


class PreTokenizer(NamedTuple):
    """`splits` are applied in turn, matches and gaps both becoming pieces; then bytes are mapped to characters.

    `gpt2` adds GPT-2's own expression at the end; `ignore_merges` takes a piece that is in the vocabulary whole;
    `add_bos` is the family's habit where a GGUF file does not say.
    """

    splits: tuple[str, ...] = ()
    gpt2: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def to_json(self) -> dict[str, Any]:
        """The `pre_tokenizer` entry of a tokenizer.json."""
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": self.gpt2,
        }
        splits = [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
            for regex in self.splits
        ]
        return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


def deepseek_v3(digits: str = r"\p{N}{1,3}") -> PreTokenizer:
    """DeepSeek-V3's; `digits` other than the default is only for training (see tokenizer.train_tokenizer)."""
    return PreTokenizer((digits, _KANJI_KANA, _DEEPSEEK_V3))


_GPT2 = PreTokenizer(gpt2=True)
_DEFAULT = PreTokenizer(  # what llama.cpp does with a file that names no kind
    (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
)
_SMOLLM = PreTokenizer((r"\p{N}",), gpt2=True)
_LLAMA3 = PreTokenizer(
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,),
    ignore_merges=True,
    add_bos=True,
)
_QWEN2 = PreTokenizer(
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,)
)
_DEEPSEEK_LLM = PreTokenizer(
    (
        r"[\r\n]",
        r"\s?" + _character_class(_DEEPSEEK_LLM_LETTERS) + "+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    )
)
_DEEPSEEK_CODER = PreTokenizer(
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")
)
_GPT4O = PreTokenizer(
    (
        _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?")
        + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
        + _SPACES,
    )
)
_TEKKEN = PreTokenizer(
    (_CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,), ignore_merges=True, add_bos=True
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "command-r": _SMOLLM,
    "codeshell": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "lfm2": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "hunyuan": _QWEN2,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": deepseek_v3(),
    "hunyuan-dense": deepseek_v3(),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "tekken": _TEKKEN,
}
"""First name of each kind is the one written into new GGUF files."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """The kind that a GGUF file names. Raises ShoalError for one that is not known: guessing gives wrong ids."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    raise ShoalError(
        f"this GGUF file's tokenizer cuts text in a way shoal does not know (tokenizer.ggml.pre = {name!r})",
        hint="Known kinds: "
        + ", ".join(sorted(PRE_TOKENIZERS))
        + ". The same model as a Hugging Face folder works.",
    )


def name_of(pre_tokenizer_json: dict[str, Any] | None) -> str | None:
    """The GGUF name of a tokenizer.json's `pre_tokenizer` entry, or None if it equals no known kind."""
    wanted = _canonical(pre_tokenizer_json)
    for name, kind in PRE_TOKENIZERS.items():
        if _canonical(kind.to_json()) == wanted:
            return name
    return None


def _canonical(node: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """Entries in order, as (kind, what matters), so that equal cuts compare equal however they are spelt."""
    if node is None:
        return []
    match node["type"]:
        case "Sequence":
            return [entry for child in node["pretokenizers"] for entry in _canonical(child)]
        case "Digits":
            return [("split", r"\p{N}" if node.get("individual_digits") else r"\p{N}+")]
        case "Split":
            pattern = node["pattern"].get("Regex", node["pattern"].get("String"))
            # Some files hold the line ends themselves, others their escapes.
            return [("split", pattern.replace("\r", r"\r").replace("\n", r"\n"))]
        case "ByteLevel":
            return [("bytes", node.get("use_regex", True))]
        case other:
            return [(other, node)]
