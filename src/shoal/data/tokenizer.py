"""Text to token ids and back: loading (tokenizer.json, GGUF), training, and streaming decoding.

People's text and markup are kept apart here: `encode(text)` never yields a control token, whatever the text spells
(a forged turn would otherwise need no more than typing it). Only markup is encoded with `special=True`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from shoal.data import pretokenizers
from shoal.errors import ShoalError
from shoal.files import atomic_write_text, read_text

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
DEEPSEEK_SPECIALS = (
    BOS,
    EOS,
    PAD,
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
)
"""DeepSeek-V3's control tokens, in the order of their ids in a tokenizer of ours (BOS 0, EOS 1, pad 2)."""

_END_NAMES = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", EOS, "<|EOT|>")
_LOOKS_LIKE_MARKUP = re.compile(r"<.+>|\[.+\]|.*[｜].*", re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")


def _byte_characters() -> dict[str, int]:
    """GPT-2's map from characters to bytes: printable bytes stand for themselves, the rest from U+0100 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()
_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}


class Tokenizer:
    """A byte-level BPE or SentencePiece-BPE tokenizer, described by the content of a tokenizer.json.

    `special_ids` are the control tokens: those marked special, and added tokens that look like markup
    (`<think>`, `<|im_start|>`). Other added tokens (letters, runs of spaces) are ordinary text.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        bos: str | None = None,
        eos: Sequence[str] = (),
        pad: str | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ):
        model = spec["model"]
        if model.get("type", "BPE") != "BPE":
            raise ShoalError(
                f"this tokenizer is of type {model['type']}; shoal reads BPE tokenizers (byte-level or SentencePiece)",
                hint="DeepSeek, Llama, Qwen and SmolLM models all have one.",
            )
        self._spec = spec
        self.byte_level = '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        self._strip_first = not self.byte_level and '"Strip"' in json.dumps(spec.get("decoder"))
        self._vocab: dict[str, int] = dict(model["vocab"])
        self._added: dict[str, Mapping[str, Any]] = {}
        for entry in spec.get("added_tokens") or ():
            self._vocab[entry["content"]] = entry["id"]
            self._added[entry["content"]] = entry
        self._token_of_id = {token_id: token for token, token_id in self._vocab.items()}
        controls = [
            token
            for token, entry in self._added.items()
            if entry.get("special") or (_LOOKS_LIKE_MARKUP.fullmatch(token) and not token.isspace())
        ]
        self.special_ids: frozenset[int] = frozenset(self._vocab[token] for token in controls)
        longest_first = sorted(controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if controls else None
        self._plain = _backend_without(spec, set(controls), self._vocab)
        self._bytes: dict[int, bytes] = {}

        self.vocab_size: int = max(self._vocab.values()) + 1
        self.bos_id = self._vocab.get(bos) if bos is not None else None
        self.pad_id = self._vocab.get(pad) if pad is not None else None
        ends = [self._vocab[token] for token in eos if token in self._vocab]
        ends += [self._vocab[token] for token in _END_NAMES if token in controls]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self.add_bos = add_bos and self.bos_id is not None
        self.chat_template = chat_template

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, without BOS. With `special=False` control strings in it stay ordinary text.

        Unpaired surrogates, which are no characters, become U+FFFD.
        """
        if not special or self._control is None:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece in self.split_markup(text):
            ids += [piece] if isinstance(piece, int) else self._encode_plain(piece)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode(text)` of each; the library spreads them over the machine's cores."""
        encodings = self._plain.encode_batch_fast([_characters(t) for t in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: str) -> list[int]:
        """A raw prompt for completion: control strings count; BOS is added if the model wants one and it has none."""
        ids = self.encode(text, special=True)
        if self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def split_markup(self, text: str) -> Iterator[int | str]:
        """Control tokens in `text` as ids, and the ordinary text between them as strings."""
        position = 0
        strip_next = False
        matches = self._control.finditer(text) if self._control else iter(())
        for match in matches:
            entry = self._added[match.group()]
            before = text[position : match.start()]
            before = before.lstrip() if strip_next else before
            before = before.rstrip() if entry.get("lstrip") else before
            if before:
                yield before
            yield entry["id"]
            position, strip_next = match.end(), bool(entry.get("rstrip"))
        rest = text[position:].lstrip() if strip_next else text[position:]
        if rest:
            yield rest

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`. A character cut off at the very end is left out; other invalid bytes become U+FFFD."""
        stream = StreamDecoder(self, skip_special=skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a control token's are its spelling, an unused id's are none."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._bytes_of(self._token_of_id.get(token_id, ""))
        return known

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary (for control tokens: as written)."""
        return self._vocab.get(token)

    def token_of(self, token_id: int) -> str | None:
        """The spelling in the vocabulary (byte-level tokens in GPT-2's alphabet)."""
        return self._token_of_id.get(token_id)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, as transformers reads them."""
        folder = Path(folder)
        names = {
            "bos_token": self._token_of_id.get(self.bos_id) if self.bos_id is not None else None,
            "eos_token": self._token_of_id.get(self.eos_ids[0]) if self.eos_ids else None,
            "pad_token": self._token_of_id.get(self.pad_id) if self.pad_id is not None else None,
        }
        names = {key: value for key, value in names.items() if value is not None}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1 << 30,
            **names,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        atomic_write_text(
            folder / "tokenizer.json", json.dumps(self._spec, ensure_ascii=False, indent=1) + "\n"
        )
        for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
            atomic_write_text(folder / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")

    def to_gguf(self) -> dict[str, Any]:
        """The `tokenizer.*` metadata of a GGUF file. Raises ShoalError where llama.cpp has no name for this kind."""
        pre = pretokenizers.name_of(self._spec.get("pre_tokenizer"))
        if not self.byte_level or pre is None:
            raise ShoalError(
                "this tokenizer cuts text in a way that GGUF has no name for, so engines would read it wrongly",
                hint="Keep the model as safetensors.",
            )
        types = [5] * self.vocab_size  # unused
        for token_id in self._token_of_id:
            types[token_id] = 1  # normal
        for entry in self._added.values():
            types[entry["id"]] = 3 if entry.get("special") else 4  # control, user defined
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [self._token_of_id.get(i, f"[PAD{i}]") for i in range(self.vocab_size)],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(self._spec["model"])],
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.bos_token_id": self.bos_id,
            "tokenizer.ggml.eos_token_id": self.eos_ids[0] if self.eos_ids else None,
            "tokenizer.ggml.padding_token_id": self.pad_id,
            "tokenizer.chat_template": self.chat_template,
        }
        return {key: value for key, value in metadata.items() if value is not None}

    def _encode_plain(self, text: str) -> list[int]:
        return self._plain.encode(_characters(text), add_special_tokens=False).ids

    def _bytes_of(self, token: str) -> bytes:
        if token in self._added:
            return token.encode("utf-8")
        if self.byte_level:
            if all(character in _BYTE_OF_CHARACTER for character in token):
                return bytes(_BYTE_OF_CHARACTER[character] for character in token)
            return token.encode("utf-8")
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode("utf-8")


class StreamDecoder:
    """Tokens in, text out, one by one: bytes of an unfinished character are held until it is whole."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False):
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer._strip_first

    def push(self, token_id: int) -> str:
        """The text that this token completes, "" while a character's bytes are incomplete."""
        if token_id in self._skip:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the stream: half a character that is still held is dropped (never shown as U+FFFD)."""
        self._decoder.reset()
        return ""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder. Raises ShoalError naming the file that is missing or broken."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        found = next((n for n in ("tokenizer.model", "vocab.json") if (folder / n).is_file()), None)
        raise ShoalError(
            f"{folder} has no tokenizer.json" + (f", only {found}" if found else ""),
            hint="Save it once with transformers' AutoTokenizer (use_fast) to get one.",
        )
    spec = _read_json(folder / "tokenizer.json")
    if not isinstance(spec.get("model"), dict) or not isinstance(spec["model"].get("vocab"), dict | list):
        raise ShoalError(
            f"{folder / 'tokenizer.json'} holds no tokenizer model", hint="Fetch the file again."
        )
    config = _read_json(folder / "tokenizer_config.json", optional=True)
    generation = _read_json(folder / "generation_config.json", optional=True)
    tokens_by_id = {entry["id"]: entry["content"] for entry in spec.get("added_tokens") or ()}
    names = {key: _token_name(config.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    eos = [names["eos_token"]] if names["eos_token"] else []
    more = generation.get("eos_token_id")
    eos += [tokens_by_id[i] for i in (more if isinstance(more, list) else [more]) if i in tokens_by_id]
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if (folder / "chat_template.jinja").is_file():
        template = read_text(folder / "chat_template.jinja")
    add_bos = config.get("add_bos_token")
    if add_bos is None:
        add_bos = names["bos_token"] is not None and json.dumps(
            names["bos_token"], ensure_ascii=False
        ) in json.dumps(spec.get("post_processor"), ensure_ascii=False)
    return Tokenizer(
        spec,
        bos=names["bos_token"],
        eos=eos,
        pad=names["pad_token"],
        add_bos=bool(add_bos),
        chat_template=template,
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer inside a GGUF file, from its `tokenizer.*` metadata. Raises ShoalError for kinds not known."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ShoalError(
            f"this GGUF file's tokenizer is of kind {kind!r}; shoal reads 'gpt2' (byte-level BPE) and 'llama'",
            hint="The same model as a Hugging Face folder may work.",
        )
    tokens: list[str] = list(metadata["tokenizer.ggml.tokens"])
    types = [int(t) for t in metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)]
    if len(types) != len(tokens):
        raise ShoalError("this GGUF file's tokenizer is broken: token_type and tokens differ in length")
    added, vocab = [], {}
    for token_id, (token, token_type) in enumerate(zip(tokens, types, strict=True)):
        if token_type == 5:  # unused
            continue
        # Some converters forgot to mark control tokens; llama.cpp looks at the spelling too.
        control = token_type == 3 or (token[:2] in ("<|", "<｜") and token[-2:] in ("|>", "｜>"))
        if token_type == 4 or control:
            added.append(_added_token(token_id, token, special=control))
        else:
            vocab[token] = token_id
    spec: dict[str, Any]
    if kind == "gpt2":
        cut = pretokenizers.pre_tokenizer(str(metadata.get("tokenizer.ggml.pre") or "default"))
        merges = [merge.split(" ", 1) for merge in metadata.get("tokenizer.ggml.merges") or ()]
        spec = _spec(vocab, merges, added, cut.to_json(), ignore_merges=cut.ignore_merges)
        default_bos = cut.add_bos
    else:
        scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
        spec = _sentencepiece_spec(
            vocab, scores, added, bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        )
        default_bos = True

    def named(key: str) -> str | None:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[int(value)] if value is not None and 0 <= int(value) < len(tokens) else None

    return Tokenizer(
        spec,
        bos=named("bos"),
        eos=[token for token in map(named, ("eos", "eot", "eom")) if token],
        pad=named("padding"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", default_bos)),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096, digits: str = "single") -> Tokenizer:
    """A byte-level BPE with DeepSeek's control tokens and the `deepseek-v3` pre-tokenizer. Equal texts give equal ids.

    `digits`: "single" makes every digit a token of its own: the merges are learnt on text cut between digits, so
    none joins two, and the saved cut can still be V3's groups of three (which llama.cpp knows by name). "grouped"
    learns on the groups, as DeepSeek does. Raises ShoalError for a vocabulary too small to hold all bytes.
    """
    if digits not in ("single", "grouped"):
        raise ShoalError(f"digits must be 'single' or 'grouped', not {digits!r}", exit_code=2)
    if vocab_size < len(DEEPSEEK_SPECIALS) + 256:
        raise ShoalError(
            f"vocab_size {vocab_size} is too small", hint="256 bytes and the control tokens need 275."
        )
    cut = pretokenizers.deepseek_v3(digits=r"\p{N}" if digits == "single" else r"\p{N}{1,3}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(regex), "isolated") for regex in cut.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in DEEPSEEK_SPECIALS],
        initial_alphabet=[_CHARACTER_OF_BYTE[byte] for byte in range(256)],
        max_token_length=24,  # bytes; Japanese has no spaces, so that whole sentences would become tokens
        show_progress=False,
    )
    backend.train_from_iterator((_characters(text) for text in texts), trainer)
    model = json.loads(backend.to_str())["model"]
    added = [
        _added_token(i, token, special=token in (BOS, EOS, PAD)) for i, token in enumerate(DEEPSEEK_SPECIALS)
    ]
    vocab = {token: token_id for token, token_id in model["vocab"].items() if token not in DEEPSEEK_SPECIALS}
    spec = _spec(vocab, _merges(model), added, pretokenizers.deepseek_v3().to_json())
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
    }
    template = (Path(__file__).parent / "deepseek_v31.jinja").read_text(encoding="utf-8")
    return Tokenizer(spec, bos=BOS, eos=(EOS,), pad=PAD, add_bos=True, chat_template=template)


def _added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": special}


def _spec(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]],
    pre_tokenizer: Mapping[str, Any],
    *,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A tokenizer.json of the byte-level kind. Control tokens stand in the vocabulary too, as DeepSeek writes them."""
    whole = {entry["content"]: entry["id"] for entry in added} | dict(vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(sorted(whole.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in merges],
        },
    }


def _sentencepiece_spec(
    vocab: Mapping[str, int], scores: Sequence[float], added: Sequence[Mapping[str, Any]], prefix: bool
) -> dict[str, Any]:
    """SentencePiece's BPE as a tokenizer.json: it merges the pair whose union has the best score."""
    merges: list[tuple[float, int, int, str, str]] = []
    for token, token_id in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-float(scores[token_id]), vocab[left], vocab[right], left, right))
    merges.sort()
    spec = _spec(vocab, [(left, right) for *_, left, right in merges], added, {})
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    undo: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        undo.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((entry["content"] for entry in added if entry["content"] == "<unk>"), None)
    spec["model"] |= {
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": unknown or ("<unk>" if "<unk>" in vocab else None),
    }
    return spec | {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": undo},
    }


def _backend_without(spec: Mapping[str, Any], controls: set[str], vocab: Mapping[str, int]) -> Backend:
    """A tokenizer that cannot make a control token: neither by an added token nor by a merge nor by a whole piece."""
    model = spec["model"]
    kept = [entry for entry in spec.get("added_tokens") or () if entry["content"] not in controls]
    unknown = model.get("unk_token")
    known = {t: i for t, i in model["vocab"].items() if t not in controls or t == unknown}
    known |= {entry["content"]: vocab[entry["content"]] for entry in kept}  # so that it keeps its id
    merges = [
        (left, right)
        for left, right in _merges(model)
        if left not in controls and right not in controls and left + right not in controls
    ]
    options = (
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    )
    frame: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    frame |= {part: spec.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")}
    try:
        backend = Backend.from_str(json.dumps(frame, ensure_ascii=False))
        given: dict[str, Any] = {name: model[name] for name in options if model.get(name)}
        backend.model = models.BPE(vocab=known, merges=merges, **given)
    except Exception as error:  # the library raises bare Exception
        raise ShoalError(f"this tokenizer is broken: {error}", hint="Fetch tokenizer.json again.") from error
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    backend.add_tokens([AddedToken(e["content"], **{f: bool(e.get(f)) for f in flags}) for e in kept])
    return backend


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merge pairs, from either spelling of tokenizer.json ("a b" or ["a", "b"])."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ())
    return [(left, right) for left, right in pairs]


def _characters(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text)


def _token_name(value: Any) -> str | None:
    """tokenizer_config.json gives a token as a string or as {"content": ...}."""
    return value.get("content") if isinstance(value, dict) else value


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise ShoalError(f"{path} is not JSON: {error}", hint="Fetch the file again.") from error
    if not isinstance(value, dict):
        raise ShoalError(f"{path} is not a JSON object", hint="Fetch the file again.")
    return value
