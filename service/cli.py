"""The `heed` command: reads what is given, refuses what cannot work with one line, and calls the part that does it.

Imports inside the commands: each then needs only what it uses, and serving needs no torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli_catalogue import catalogue
from service.cli_explain import explain, faithfulness
from service.cli_explain_intent import explain_intent
from service.cli_explain_recommend import explain_recommend
from service.cli_shelf import heads, replies, train_head
from service.cluster import Cluster, ClusterError, check
from service.refusal import refuse, stop_on_signals
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(catalogue, name="catalogue")
app.add_typer(heads, name="heads")
app.add_typer(replies, name="replies")
app.add_typer(explain, name="explain")
app.command()(faithfulness)
explain.command("intent")(explain_intent)
explain.command("recommend")(explain_recommend)

_EXAMPLES = {
    "sentiment": '{"inputs": "Shares of Acme plunge after profit warning"}',
    "intent": '{"inputs": "where is my card?"}',
    "recommend": '{"inputs": {"history": [{"text": "Regency cakestand 3 tier", "event": "purchase"}], "top_k": 5}}',
}


@app.callback()
def heed() -> None:
    """Sentiment, intents and replies, English and Chinese."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HEED_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (HEED_PORT, 8000).")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the model (HEED_BUNDLE, the shipped one).")] = None,
    replicas: Annotated[int | None, typer.Option(help="Processes (HEED_REPLICAS, one per core up to 4).")] = None,
) -> None:
    """Serve the models on this machine until Ctrl-C."""
    from models.bundle import BundleError
    from models.prediction.tensor_file import HeadError
    from service import haproxy, settings

    try:
        chosen = settings.load(host=host, port=port, bundle=bundle and bundle.resolve(), replicas=replicas)
    except settings.SettingsError as error:
        refuse(error, 2)
    try:
        names = _verified(chosen)
        check(chosen.host, chosen.port)
    except (BundleError, HeadError, ClusterError, RuntimeError) as error:
        refuse(error)
    if haproxy.find() is None:
        refuse(haproxy.MISSING)
    _run(Cluster(chosen), " and ".join(names), f"http://{chosen.host}:{chosen.port}", list(chosen.bundles))


def _verified(chosen: Settings) -> list[str]:
    """What would be served, by name and version; raises when any of it cannot be."""
    from models.bundle import BundleError, load
    from models.ranking.bundle_files import load_recommender
    from service.shelf import Shelf

    if chosen.device != "cpu":
        from models.runtime.onnx import check_device

        check_device(chosen.device)
    names = []
    for task, path in chosen.bundles.items():
        bundle = load(path)
        if bundle.task.name != task:
            raise BundleError(f"bundle {path.name}: it is a model of {bundle.task.name}, not of {task}")
        if task == "intent":
            known = Shelf(bundle, chosen.shelf).all_heads()
            if chosen.labels not in known:
                raise BundleError(f"HEED_LABELS={chosen.labels}: there are the label sets {', '.join(sorted(known))}")
        if task == "recommend":
            load_recommender(bundle)
        names.append(f"{bundle.name} {bundle.version}")
    return names


@app.command()
def tune(
    bundle: Annotated[Path | None, typer.Option(help="Folder of the model (HEED_BUNDLE, the shipped one).")] = None,
    seconds: Annotated[float, typer.Option(help="For each measurement; about a dozen are made.", min=0.1)] = 4.0,
    cores: Annotated[int | None, typer.Option(help="Cores to use (all of this machine).", min=1)] = None,
) -> None:
    """Measure this machine and print the settings that suit it: heed tune > heed.env."""
    from models.bundle import BundleError, load
    from service import settings
    from service.throughput import ThroughputError
    from service.tune import HEADER, Trials, TuneError, busy, free_memory_bytes, usable_cores
    from service.tune import tune as measure

    stop_on_signals()
    try:
        chosen = settings.load(bundle=bundle and bundle.resolve())
        used = usable_cores(cores)
    except (settings.SettingsError, TuneError) as error:
        refuse(error, 2)
    try:
        served = load(chosen.bundle)
        for line in (f"{served.name} {served.version}, {used} cores, {chosen.device}", busy(used), HEADER):
            if line:
                _say(line)
        found = measure(Trials(served, chosen, seconds, _say), used, free_memory_bytes())
    except (BundleError, ThroughputError, TuneError) as error:
        refuse(error)
    except KeyboardInterrupt:
        refuse("stopped", 130)
    print("\n".join(f"HEED_{name.upper()}={value}" for name, value in found.items()))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@app.command()
def train(
    task: Annotated[Literal["sentiment", "intent", "recommend"], typer.Argument(help="What to learn.")],
    data: Annotated[
        Path, typer.Option(help="Folder with a folder for each data set; with --labels a .jsonl.", exists=True)
    ],
    base: Annotated[
        str | None, typer.Option(help="Encoder to start from: a folder in the transformers format, or a hub name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for weights, checkpoints and TensorBoard files; with --labels a file.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (the shipped one of the task).")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Intent: learn intents of your own, under this name, on the model as it is.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="With --labels: the intent model (HEED_INTENT_BUNDLE).")] = None,
    full: Annotated[
        bool,
        typer.Option(help="With --labels: teach the encoder too, from --base with the sets of --sets, into --out."),
    ] = False,
    sets: Annotated[
        Path | None, typer.Option(help="With --full: folder of the configuration's data sets.", file_okay=False)
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Recommend: folder with the texts that are no items.", file_okay=False)
    ] = None,
    rejected: Annotated[
        float, typer.Option(help="With --labels: share of texts in scope to turn away.", min=0.0, max=0.5)
    ] = 0.05,
) -> None:
    """Fine-tune a model; run again after a kill, it goes on from its newest checkpoint.

    heed train intent --labels my-team --data my.jsonl takes seconds and no torch: it learns a head on the model.
    """
    if labels is not None:
        if task != "intent":
            refuse("--labels is for intents: heed train intent --labels NAME --data FILE", 2)
        if not full:
            train_head(labels, data, out or Path(f"{labels}.head.safetensors"), bundle, rejected)
            return
        if sets is None:
            refuse("--sets is needed to teach the encoder too", 2)
    if base is None or out is None:
        refuse("--base and --out are needed to train an encoder", 2)
    from models.prediction.tensor_file import HeadError
    from models.training.classification import CONFIGS, read_config
    from models.training.classification import train as fine_tune
    from models.training.intent import train_intents
    from models.training.intent_batches import read_intent_config, with_examples
    from models.training.recommendation import read_recommend_config, train_recommend
    from models.training.trainer import ConfigError

    path = config or CONFIGS / f"{task}.toml"
    try:
        if task == "sentiment":
            fine_tune(read_config(path), base, data, out)
        elif task == "recommend":
            if texts is None:
                refuse("--texts is needed to train a recommender", 2)
            train_recommend(read_recommend_config(path), base, data, texts, out)
        elif labels is not None and sets is not None:
            data, own = sets, data
            train_intents(with_examples(read_intent_config(path)[0], labels, own), base, data, out)
        else:
            train_intents(read_intent_config(path)[0], base, data, out)
    except (ConfigError, HeadError, OSError) as error:
        refuse(error, 2)
    print(f"Trained. Make a bundle of it: heed export {out} --data {data} --out models/bundles/{task}")


@app.command()
def distill(
    task: Annotated[Literal["sentiment", "intent"], typer.Argument(help="What the model answers.")],
    teacher: Annotated[Path, typer.Option(help="The folder that `heed train` wrote.", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for weights, checkpoints and TensorBoard files.")],
    texts: Annotated[
        Path | None, typer.Option(help="Sentiment: folder with the texts without labels.", exists=True, file_okay=False)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (the shipped one of the task).")] = None,
) -> None:
    """Teach a shallower model what a fine-tuned one knows; resumes like `train`."""
    from models.training.classification import CONFIGS
    from models.training.distillation import distill as teach
    from models.training.distillation import read_distillation
    from models.training.intent import distill_intents
    from models.training.intent_batches import read_intent_config
    from models.training.trainer import ConfigError

    try:
        if task == "intent":
            distill_intents(*read_intent_config(config or CONFIGS / "intent.toml"), teacher, data, out)
        elif texts is None:
            refuse("--texts is needed", 2)
        else:
            teach(read_distillation(config or CONFIGS / f"{task}-student.toml"), teacher, data, texts, out)
    except (ConfigError, OSError) as error:
        refuse(error, 2)
    print(f"Trained. Make a bundle of it: heed export {out} --data {data} --out models/bundles/{task}")


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder that `heed train` wrote; or a bundle of intents, to make its heads anew.",
            exists=True,
            file_okay=False,
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; it is replaced.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1.0.0",
    storage: Annotated[
        Literal["int8", "mixed", "fp32"],
        typer.Option(help="Of the graph's matrices: int8, mixed (16 bits) or fp32."),
    ] = "int8",
    teacher: Annotated[Path | None, typer.Option(help="The teacher's bundle, for the card of a student.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Of a bundle of intents: this head alone; repeatable.")] = None,
) -> None:
    """Make a bundle that serves, unless its answers drift from the trained network's."""
    from models.bundle import MANIFEST, BundleError, load
    from models.export.classification import export as make
    from models.export.intent import export_heads, export_intents
    from models.export.parity import DriftError
    from models.export.recommendation import export_recommend
    from models.training.classification import task_of

    try:
        task = "" if (run / MANIFEST).is_file() else task_of(run)
        if not task:
            bundle = export_heads(run, data, out, version, head or (), print)
        elif task == "intent":
            bundle = export_intents(run, data, out, version, print)
        elif task == "recommend":
            bundle = export_recommend(run, data, out, version, print)
        else:
            bundle = make(run, data, out, version, storage, None if teacher is None else load(teacher), print)
    except (BundleError, DriftError, ValueError, OSError) as error:
        refuse(error)
    print(f"Wrote {bundle.path}; its figures are in {bundle.path / 'CARD.md'}")


@app.command()
def evaluate(
    task: Annotated[Literal["sentiment", "intent", "recommend"], typer.Argument(help="Which model.")] = "sentiment",
    *,
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle (the shipped one).")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table, the JSON and the confusion matrices.")] = Path(
        "runs/evaluation"
    ),
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the model runs; of sentiment and intent.")
    ] = "cpu",
) -> None:
    """Measure a bundle on the validation files, as it serves."""
    from models.bundle import SHIPPED, BundleError, load
    from models.evaluation.classification import evaluate as measure
    from models.evaluation.classification import table, write
    from models.evaluation.intent import evaluate_bundle, intents_table, write_intents
    from models.evaluation.recommendation import evaluate_recommender, recommend_table, write_recommender
    from models.prediction.tensor_file import HeadError

    try:
        loaded = load(bundle or SHIPPED.with_name(task))
        if loaded.task.name == "recommend":
            if device != "cpu":
                refuse("heed evaluate recommend ranks vectors that the bundle stores, which no device changes")
            taken = evaluate_recommender(loaded, data)
            write_recommender(taken, out)
            shown = recommend_table(taken)
        elif loaded.task.name == "intent":
            found = evaluate_bundle(loaded, data, device)
            write_intents(found, out)
            shown = intents_table(found)
        else:
            measured = measure(loaded, data, device)
            write(measured, loaded.task, out)
            shown = table(measured)
    except (BundleError, HeadError, OSError, RuntimeError) as error:
        refuse(error)
    print(
        f"{loaded.name} {loaded.version}, {loaded.graph.name} on {device}, validation files\n\n{shown}\n\nWrote {out}"
    )


def _run(cluster: Cluster, models: str, address: str, tasks: list[str]) -> None:
    """Start, say where, wait, stop: by Ctrl-C or SIGTERM with exit code 0, by a failure with 1."""
    stop_on_signals()
    failure: ClusterError | None = None
    try:
        print(f"Starting {models} on {address} ...", flush=True)
        started_s = time.monotonic()
        cluster.start()
        print(f"Ready after {time.monotonic() - started_s:.0f} s; Ctrl-C stops. Documentation: {address}/docs. Try:\n")
        for task in tasks:
            print(
                f"  curl {address}/v1/{task} -H 'Content-Type: application/json' -d '{_EXAMPLES[task]}'\n", flush=True
            )
        cluster.wait()
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
    except ClusterError as error:
        failure = error
    finally:
        cluster.stop()
    if failure is not None:
        refuse(failure)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
