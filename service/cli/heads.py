"""`heed heads` and `heed replies`: what a team adds to the intent model, and a running service picks up by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from models.bundle import Bundle, BundleError, load_bundle
from service import settings
from service.cli.exit import fail

heads = typer.Typer(no_args_is_help=True, help="Sets of intents that the service answers with.")
replies = typer.Typer(no_args_is_help=True, help="Sets of replies that the service ranks.")

_Shelf = Annotated[Path | None, typer.Option(help="Folder of heads and reply sets (HEED_DATA_DIR).", file_okay=False)]
_Bundle = Annotated[Path | None, typer.Option(help="Folder of the intent model (HEED_INTENT_BUNDLE, the shipped one).")]
_SERVED = "A running service has it within two seconds."


@heads.command("add")
def add_head(
    file: Annotated[
        Path, typer.Argument(help="What `heed train intent --label-set` wrote.", exists=True, dir_okay=False)
    ],
    data_dir: _Shelf = None,
    bundle: _Bundle = None,
) -> None:
    """Serve a head; one of the same name is replaced."""
    from models.prediction.intent_head import SUFFIX, load_head
    from models.prediction.tensor_file import ArtifactError

    folder, loaded = open_data_dir(data_dir, bundle)
    try:
        head = load_head(file, loaded.encoder_digest)
    except ArtifactError as error:
        fail(error)
    if head.name in _own_names(loaded.path):
        fail(f"{head.name} is a label set of the model itself; train yours under another name")
    target = folder / f"{head.name}{SUFFIX}"
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(file, part)
    part.replace(target)
    print(f"{head.name}: {len(head.labels)} intents. {_SERVED}")


@heads.command("list")
def list_heads(data_dir: _Shelf = None, bundle: _Bundle = None) -> None:
    """Every label set a request can name."""
    from models.prediction.intent_head import HEADS_FOLDER, SUFFIX, load_head
    from models.prediction.tensor_file import ArtifactError

    folder, loaded = open_data_dir(data_dir, bundle)
    for source in (loaded.path / HEADS_FOLDER, folder):
        for path in sorted(source.glob(f"*{SUFFIX}")):
            try:
                head = load_head(path, loaded.encoder_digest)
                measured = ", ".join(f"{name} {value:.3f}" for name, value in head.figures.items())
                print(f"{head.name}: {len(head.labels)} intents, {measured}")
            except ArtifactError as error:
                print(f"not usable: {error}")


@heads.command("remove")
def remove_head(name: Annotated[str, typer.Argument(help="Name of the label set.")], data_dir: _Shelf = None) -> None:
    """Serve a head no longer."""
    from models.prediction.intent_head import SUFFIX

    _remove(name, SUFFIX, data_dir)


@replies.command("add")
def add_replies(
    name: Annotated[str, typer.Argument(help="Name of the reply set.")],
    file: Annotated[Path, typer.Argument(help="Replies, a line each, or .jsonl with a text each.", dir_okay=False)],
    data_dir: _Shelf = None,
    bundle: _Bundle = None,
) -> None:
    """Embed replies once and serve them; a set of the same name is replaced."""
    from models.data.user_files import DataError, read_replies
    from models.prediction.reply_ranker import RANKER, SET_SUFFIX, ReplySet, load_ranker, save_replies
    from models.prediction.tensor_file import ArtifactError
    from models.runtime.offline import open_text_encoder

    folder, loaded = open_data_dir(data_dir, bundle)
    check_name(name)
    try:
        texts = read_replies(file)
        ranker = load_ranker(loaded.path / RANKER)
    except (DataError, ArtifactError) as error:
        fail(error)
    placed = ranker.project_replies(open_text_encoder(loaded).encode_texts(texts))
    save_replies(ReplySet(name, loaded.encoder_digest, tuple(texts), placed), folder / f"{name}{SET_SUFFIX}")
    print(f"{name}: {len(texts)} replies. {_SERVED}")


@replies.command("list")
def list_replies(data_dir: _Shelf = None, bundle: _Bundle = None) -> None:
    """Every reply set a request can name."""
    from models.prediction.reply_ranker import SET_SUFFIX, load_replies
    from models.prediction.tensor_file import ArtifactError

    folder, loaded = open_data_dir(data_dir, bundle)
    for path in sorted(folder.glob(f"*{SET_SUFFIX}")):
        try:
            found = load_replies(path, loaded.encoder_digest)
            print(f"{found.name}: {len(found.texts)} replies")
        except ArtifactError as error:
            print(f"not usable: {error}")


@replies.command("remove")
def remove_replies(
    name: Annotated[str, typer.Argument(help="Name of the reply set.")], data_dir: _Shelf = None
) -> None:
    """Serve a reply set no longer."""
    from models.prediction.reply_ranker import SET_SUFFIX

    _remove(name, SET_SUFFIX, data_dir)


def train_head(name: str, data: Path, out: Path, bundle: Path | None, rejection_rate: float) -> None:
    """Make a head of a team's own examples, and say how good it is."""
    from models.data.user_files import DataError, read_examples
    from models.prediction.intent_head import save_head
    from models.prediction.intent_head_fit import Examples, fit_intent_head
    from models.prediction.tensor_file import ArtifactError
    from models.runtime.offline import open_text_encoder
    from models.text.language import detect_language

    check_name(name)
    try:
        loaded = _loaded(bundle or settings.load_settings().bundles.get("intent"))
        rows = read_examples(data)
        print(f"Embedding {len(rows)} examples ...", flush=True)
        vectors = open_text_encoder(loaded).encode_dialogues([turns for turns, _ in rows])
        languages = sorted({detect_language(turns[-1].text) for turns, _ in rows})
        examples = Examples(vectors, tuple(label for _, label in rows))
        head, report = fit_intent_head(name, languages, loaded.encoder_digest, examples, rejection_rate=rejection_rate)
    except (DataError, ArtifactError, BundleError, settings.SettingsError) as error:
        fail(error)
    save_head(head, out)
    print(
        f"{len(head.labels)} intents, cross-validated: accuracy {report.accuracy:.3f}, calibration error "
        f"{report.ece:.3f}"
    )
    for pair in report.confusions:
        print(f"  {pair.count} of {pair.label} taken for {pair.taken_for}")
    for one in report.label_issues:
        text = rows[one.index][0][-1].text
        print(f"  perhaps mislabelled: {text!r} is {one.label}, looks like {one.looks_like} ({one.confidence:.2f})")
    print(f"Wrote {out}; serve it: heed heads add {out}")


def check_name(name: str) -> None:
    if not name or len(name) > 128 or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
        fail(f"the name {name!r} should be letters, digits, -, _ and . only", 2)


def open_data_dir(data_dir: Path | None, bundle: Path | None) -> tuple[Path, Bundle]:
    """The folder, made if missing, and the intent model."""
    try:
        chosen = settings.load_settings(
            data_dir=data_dir and data_dir.resolve(), intent_bundle=bundle and bundle.resolve()
        )
    except settings.SettingsError as error:
        fail(error, 2)
    if chosen.data_dir is None:
        fail("HEED_DATA_DIR is none: there is no folder for heads and reply sets", 2)
    chosen.data_dir.mkdir(parents=True, exist_ok=True)
    return chosen.data_dir, _loaded(chosen.bundles.get("intent"))


def _loaded(bundle: Path | None) -> Bundle:
    if bundle is None:
        fail("HEED_INTENT_BUNDLE is none: there is no intent model", 2)
    try:
        return load_bundle(bundle)
    except BundleError as error:
        fail(error)


def _own_names(bundle: Path) -> set[str]:
    from models.prediction.intent_head import HEADS_FOLDER, SUFFIX

    return {path.name.removesuffix(SUFFIX) for path in (bundle / HEADS_FOLDER).glob(f"*{SUFFIX}")}


def _remove(name: str, suffix: str, data_dir: Path | None) -> None:
    chosen = settings.load_settings(data_dir=data_dir and data_dir.resolve())
    path = (chosen.data_dir or Path()) / f"{name}{suffix}"
    if not path.is_file():
        fail(f"there is no {name} in {chosen.data_dir}")
    path.unlink()
    print(f"{name} is removed.")
