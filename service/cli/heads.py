"""`heed heads` and `heed replies`: what a team adds to the intent model, and a running service picks up by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from models.bundle import Bundle, BundleError, load
from service import settings
from service.cli.exit import refuse

heads = typer.Typer(no_args_is_help=True, help="Sets of intents that the service answers with.")
replies = typer.Typer(no_args_is_help=True, help="Sets of replies that the service ranks.")

_Shelf = Annotated[Path | None, typer.Option(help="Folder of heads and reply sets (HEED_SHELF).", file_okay=False)]
_Bundle = Annotated[Path | None, typer.Option(help="Folder of the intent model (HEED_INTENT_BUNDLE, the shipped one).")]
_SERVED = "A running service has it within two seconds."


@heads.command("add")
def add_head(
    file: Annotated[Path, typer.Argument(help="What `heed train intent --labels` wrote.", exists=True, dir_okay=False)],
    shelf: _Shelf = None,
    bundle: _Bundle = None,
) -> None:
    """Serve a head; one of the same name is replaced."""
    from models.prediction.intent_head import SUFFIX, load_head
    from models.prediction.tensor_file import HeadError

    folder, loaded = opened(shelf, bundle)
    try:
        head = load_head(file, loaded.encoder)
    except HeadError as error:
        refuse(error)
    if head.name in _own_names(loaded.path):
        refuse(f"{head.name} is a label set of the model itself; train yours under another name")
    target = folder / f"{head.name}{SUFFIX}"
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(file, part)
    part.replace(target)
    print(f"{head.name}: {len(head.labels)} intents. {_SERVED}")


@heads.command("list")
def list_heads(shelf: _Shelf = None, bundle: _Bundle = None) -> None:
    """Every label set a request can name."""
    from models.prediction.intent_head import HEADS, SUFFIX, load_head
    from models.prediction.tensor_file import HeadError

    folder, loaded = opened(shelf, bundle)
    for source in (loaded.path / HEADS, folder):
        for path in sorted(source.glob(f"*{SUFFIX}")):
            try:
                head = load_head(path, loaded.encoder)
                measured = ", ".join(f"{name} {value:.3f}" for name, value in head.figures.items())
                print(f"{head.name}: {len(head.labels)} intents, {measured}")
            except HeadError as error:
                print(f"not usable: {error}")


@heads.command("remove")
def remove_head(name: Annotated[str, typer.Argument(help="Name of the label set.")], shelf: _Shelf = None) -> None:
    """Serve a head no longer."""
    from models.prediction.intent_head import SUFFIX

    _remove(name, SUFFIX, shelf)


@replies.command("add")
def add_replies(
    name: Annotated[str, typer.Argument(help="Name of the reply set.")],
    file: Annotated[Path, typer.Argument(help="Replies, a line each, or .jsonl with a text each.", dir_okay=False)],
    shelf: _Shelf = None,
    bundle: _Bundle = None,
) -> None:
    """Embed replies once and serve them; a set of the same name is replaced."""
    from models.data.user_files import DataError, read_replies
    from models.prediction.reply_ranker import RANKER, SET_SUFFIX, ReplySet, load_ranker, save_replies
    from models.prediction.tensor_file import HeadError
    from models.runtime.offline import open_reader

    folder, loaded = opened(shelf, bundle)
    check_name(name)
    try:
        texts = read_replies(file)
        ranker = load_ranker(loaded.path / RANKER)
    except (DataError, HeadError) as error:
        refuse(error)
    placed = ranker.place(open_reader(loaded).texts(texts))
    save_replies(ReplySet(name, loaded.encoder, tuple(texts), placed), folder / f"{name}{SET_SUFFIX}")
    print(f"{name}: {len(texts)} replies. {_SERVED}")


@replies.command("list")
def list_replies(shelf: _Shelf = None, bundle: _Bundle = None) -> None:
    """Every reply set a request can name."""
    from models.prediction.reply_ranker import SET_SUFFIX, load_replies
    from models.prediction.tensor_file import HeadError

    folder, loaded = opened(shelf, bundle)
    for path in sorted(folder.glob(f"*{SET_SUFFIX}")):
        try:
            found = load_replies(path, loaded.encoder)
            print(f"{found.name}: {len(found.texts)} replies")
        except HeadError as error:
            print(f"not usable: {error}")


@replies.command("remove")
def remove_replies(name: Annotated[str, typer.Argument(help="Name of the reply set.")], shelf: _Shelf = None) -> None:
    """Serve a reply set no longer."""
    from models.prediction.reply_ranker import SET_SUFFIX

    _remove(name, SET_SUFFIX, shelf)


def train_head(name: str, data: Path, out: Path, bundle: Path | None, rejected: float) -> None:
    """Make a head of a team's own examples, and say how good it is."""
    from models.data.user_files import DataError, read_examples
    from models.prediction.intent_head import save_head
    from models.prediction.intent_head_fit import Examples, make
    from models.prediction.tensor_file import HeadError
    from models.runtime.offline import open_reader
    from models.text.language import language_of

    check_name(name)
    try:
        loaded = _loaded(bundle or settings.load().bundles.get("intent"))
        rows = read_examples(data)
        print(f"Embedding {len(rows)} examples ...", flush=True)
        vectors = open_reader(loaded).dialogues([turns for turns, _ in rows])
        languages = sorted({language_of(turns[-1].text) for turns, _ in rows})
        examples = Examples(vectors, tuple(label for _, label in rows))
        head, report = make(name, languages, loaded.encoder, examples, rejected=rejected)
    except (DataError, HeadError, BundleError, settings.SettingsError) as error:
        refuse(error)
    save_head(head, out)
    print(
        f"{len(head.labels)} intents, cross-validated: accuracy {report.accuracy:.3f}, calibration error "
        f"{report.ece:.3f}"
    )
    for pair in report.confusions:
        print(f"  {pair.count} of {pair.label} taken for {pair.taken_for}")
    for one in report.suspicions:
        text = rows[one.number][0][-1].text
        print(f"  perhaps mislabelled: {text!r} is {one.label}, looks like {one.looks_like} ({one.confidence:.2f})")
    print(f"Wrote {out}; serve it: heed heads add {out}")


def check_name(name: str) -> None:
    if not name or len(name) > 128 or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
        refuse(f"the name {name!r} should be letters, digits, -, _ and . only", 2)


def opened(shelf: Path | None, bundle: Path | None) -> tuple[Path, Bundle]:
    """The folder, made if missing, and the intent model."""
    try:
        chosen = settings.load(shelf=shelf and shelf.resolve(), intent_bundle=bundle and bundle.resolve())
    except settings.SettingsError as error:
        refuse(error, 2)
    if chosen.shelf is None:
        refuse("HEED_SHELF is none: there is no folder for heads and reply sets", 2)
    chosen.shelf.mkdir(parents=True, exist_ok=True)
    return chosen.shelf, _loaded(chosen.bundles.get("intent"))


def _loaded(bundle: Path | None) -> Bundle:
    if bundle is None:
        refuse("HEED_INTENT_BUNDLE is none: there is no intent model", 2)
    try:
        return load(bundle)
    except BundleError as error:
        refuse(error)


def _own_names(bundle: Path) -> set[str]:
    from models.prediction.intent_head import HEADS, SUFFIX

    return {path.name.removesuffix(SUFFIX) for path in (bundle / HEADS).glob(f"*{SUFFIX}")}


def _remove(name: str, suffix: str, shelf: Path | None) -> None:
    chosen = settings.load(shelf=shelf and shelf.resolve())
    path = (chosen.shelf or Path()) / f"{name}{suffix}"
    if not path.is_file():
        refuse(f"there is no {name} in {chosen.shelf}")
    path.unlink()
    print(f"{name} is removed.")
