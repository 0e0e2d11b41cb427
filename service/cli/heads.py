"""`heed heads` and `heed replies`: label sets and reply sets of a team, which a running service loads by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from models.bundle import Bundle, BundleError, load_bundle
from models.files import replace_atomically
from service.cli.command import describe_data_dir, examples, fail, fail_missing, log, read_settings, require_runtime
from service.settings import Settings

heads = typer.Typer(no_args_is_help=True, help="Add, list and remove label sets of intents.")
replies = typer.Typer(no_args_is_help=True, help="Add, list and remove sets of replies.")

_DataDir = Annotated[Path | None, typer.Option(help="Folder of heads and reply sets (HEED_DATA_DIR).", file_okay=False)]
_BundleFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the intent model (HEED_INTENT_BUNDLE). The default is the shipped one."),
]
_SERVED = "A running service with this data folder has it within two seconds."


@heads.command("add", epilog=examples("heed heads add my-team.head.safetensors"))
def add_head(
    file: Annotated[
        Path,
        typer.Argument(
            help="NAME.head.safetensors, which heed train intent --label-set wrote.", exists=True, dir_okay=False
        ),
    ],
    data_dir: _DataDir = None,
    bundle: _BundleFolder = None,
) -> None:
    """Serve a head. It replaces a head of the same name."""
    from models.prediction.intent_head import SUFFIX, load_head
    from models.prediction.tensor_file import ArtifactError

    folder, loaded = open_data_dir(data_dir, bundle)
    try:
        head = load_head(file, loaded.encoder_digest)
    except ArtifactError as error:
        fail(error)
    if head.name in _bundle_label_sets(loaded.path):
        fail(f"{head.name} is a label set of the model itself; train yours under another name")
    try:
        with replace_atomically(folder / f"{head.name}{SUFFIX}") as temporary:
            shutil.copyfile(file, temporary)
    except OSError as error:
        fail(error)
    print(f"{head.name}: {len(head.labels)} intents. {describe_data_dir(folder)}. {_SERVED}")


@heads.command("list", epilog=examples("heed heads list"))
def list_heads(data_dir: _DataDir = None, bundle: _BundleFolder = None) -> None:
    """List every label set that a request can name, with its measured figures."""
    from models.prediction.intent_head import HEADS_FOLDER, SUFFIX, load_head
    from models.prediction.tensor_file import ArtifactError

    folder, loaded = open_data_dir(data_dir, bundle)
    log(describe_data_dir(folder))
    for source in (loaded.path / HEADS_FOLDER, folder):
        for path in sorted(source.glob(f"*{SUFFIX}")):
            try:
                head = load_head(path, loaded.encoder_digest)
                figures = ", ".join(f"{name} {value:.3f}" for name, value in head.figures.items())
                print(f"{head.name}: {len(head.labels)} intents, {figures}")
            except ArtifactError as error:
                print(f"not usable: {error}")


@heads.command("remove", epilog=examples("heed heads remove my-team"))
def remove_head(name: Annotated[str, typer.Argument(help="Name of the label set.")], data_dir: _DataDir = None) -> None:
    """Stop serving a head and delete its file."""
    from models.prediction.intent_head import SUFFIX

    _remove("head", name, SUFFIX, data_dir)


@replies.command("add", epilog=examples("heed replies add support replies.txt"))
def add_replies(
    name: Annotated[str, typer.Argument(help="Name of the reply set.")],
    file: Annotated[
        Path,
        typer.Argument(
            help='A text file with one reply per line, or a .jsonl or .jsonl.gz file of {"text"}.', dir_okay=False
        ),
    ],
    data_dir: _DataDir = None,
    bundle: _BundleFolder = None,
) -> None:
    """Embed replies and serve them. They replace a set of the same name."""
    from models.data.user_files import DataError, read_replies
    from models.prediction.reply_ranker import RANKER, SET_SUFFIX, ReplySet, load_ranker, save_replies
    from models.prediction.tensor_file import ArtifactError
    from models.runtime.offline import open_text_encoder

    require_runtime()
    folder, loaded = open_data_dir(data_dir, bundle)
    check_name(name)
    try:
        texts = read_replies(file)
        ranker = load_ranker(loaded.path / RANKER)
    except (DataError, ArtifactError) as error:
        fail(error)
    projected = ranker.project_replies(open_text_encoder(loaded).encode_texts(texts))
    save_replies(ReplySet(name, loaded.encoder_digest, tuple(texts), projected), folder / f"{name}{SET_SUFFIX}")
    print(f"{name}: {len(texts)} replies. {describe_data_dir(folder)}. {_SERVED}")


@replies.command("list", epilog=examples("heed replies list"))
def list_replies(data_dir: _DataDir = None, bundle: _BundleFolder = None) -> None:
    """List every reply set that a request can name."""
    from models.prediction.reply_ranker import SET_SUFFIX, load_replies
    from models.prediction.tensor_file import ArtifactError

    folder, loaded = open_data_dir(data_dir, bundle)
    log(describe_data_dir(folder))
    for path in sorted(folder.glob(f"*{SET_SUFFIX}")):
        try:
            reply_set = load_replies(path, loaded.encoder_digest)
            print(f"{reply_set.name}: {len(reply_set.texts)} replies")
        except ArtifactError as error:
            print(f"not usable: {error}")


@replies.command("remove", epilog=examples("heed replies remove support"))
def remove_replies(
    name: Annotated[str, typer.Argument(help="Name of the reply set.")], data_dir: _DataDir = None
) -> None:
    """Stop serving a reply set and delete its file."""
    from models.prediction.reply_ranker import SET_SUFFIX

    _remove("reply set", name, SET_SUFFIX, data_dir)


def train_head(name: str, data: Path, out: Path, bundle: Path | None, rejection_rate: float) -> None:
    """Fit a head to a team's examples, write it and print how good it is."""
    from models.data.user_files import DataError, read_examples
    from models.prediction.intent_head import save_head
    from models.prediction.intent_head_fit import Examples, fit_intent_head
    from models.prediction.tensor_file import ArtifactError
    from models.runtime.offline import open_text_encoder
    from models.text.language import detect_language

    check_name(name)
    require_runtime()
    try:
        rows = read_examples(data)
        loaded = _load_intent_bundle(bundle or read_settings().bundles.get("intent"))
        print(f"Embedding {len(rows)} examples ...", flush=True)
        vectors = open_text_encoder(loaded).encode_dialogues([turns for turns, _ in rows])
        languages = sorted({detect_language(turns[-1].text) for turns, _ in rows})
        labelled = Examples(vectors, tuple(label for _, label in rows))
        head, report = fit_intent_head(name, languages, loaded.encoder_digest, labelled, rejection_rate=rejection_rate)
    except (DataError, ArtifactError, BundleError) as error:
        fail(error)
    save_head(head, out)
    print(
        f"{len(head.labels)} intents, cross-validated: accuracy {report.accuracy:.3f}, calibration error "
        f"{report.ece:.3f}"
    )
    for pair in report.confusions:
        print(f"  {pair.count} of {pair.label} predicted as {pair.taken_for}")
    for issue in report.label_issues:
        text = rows[issue.index][0][-1].text
        print(
            f"  perhaps mislabelled: {text!r} is {issue.label}, looks like {issue.looks_like} ({issue.confidence:.2f})"
        )
    print(f"Wrote {out}; serve it: heed heads add {out}")


def check_name(name: str) -> None:
    """Fail unless a label set or a reply set may have this name."""
    if not name or len(name) > 128 or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
        fail(f"the name {name!r} should be letters, digits, -, _ and . only", 2)


def open_data_dir(data_dir: Path | None, bundle: Path | None) -> tuple[Path, Bundle]:
    """Return the data folder, which is created if it is missing, and the intent model."""
    folder, configured = _find_data_dir(data_dir, bundle)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{folder} cannot be used as the data folder ({error.strerror}); set HEED_DATA_DIR or --data-dir", 2)
    return folder, _load_intent_bundle(configured.bundles.get("intent"))


def _find_data_dir(data_dir: Path | None, bundle: Path | None = None) -> tuple[Path, Settings]:
    configured = read_settings(data_dir=data_dir and data_dir.resolve(), intent_bundle=bundle and bundle.resolve())
    if configured.data_dir is None:
        fail("HEED_DATA_DIR is none: there is no folder for heads and reply sets; name one with --data-dir", 2)
    return configured.data_dir, configured


def _load_intent_bundle(bundle: Path | None) -> Bundle:
    if bundle is None:
        fail("HEED_INTENT_BUNDLE is none: there is no intent model", 2)
    try:
        return load_bundle(bundle)
    except BundleError as error:
        fail(error)


def _bundle_label_sets(bundle: Path) -> set[str]:
    from models.prediction.intent_head import HEADS_FOLDER, SUFFIX

    return {path.name.removesuffix(SUFFIX) for path in (bundle / HEADS_FOLDER).glob(f"*{SUFFIX}")}


def _remove(kind: str, name: str, suffix: str, data_dir: Path | None) -> None:
    """Delete a head or a reply set. If it is not there, fail with the folder, its setting and the names in it."""
    folder, _ = _find_data_dir(data_dir)
    names = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
    if name not in names:
        fail_missing(kind, name, folder, names)
    (folder / f"{name}{suffix}").unlink()
    print(f"{name} is removed. {describe_data_dir(folder)}")
