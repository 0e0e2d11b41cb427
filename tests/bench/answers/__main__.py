"""Record the answers of a service, and compare two recordings: `python -m tests.bench.answers --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench.answers import comparison, recording
from tests.bench.answers.names import Names


def main() -> None:
    options = _options()
    try:
        if options.command == "prepare":
            recording.prepare(options.folder, options.heed, Names(options.names))
        elif options.command == "record":
            with recording.open_client(options.url) as client:
                recording.record(client, recording.all_requests(), options.file, Names(options.names))
        else:
            _compare(options.before, options.after, options.show)
    except (recording.RecordingError, OSError, ValueError) as error:
        raise SystemExit(f"answers: {error}") from None


def _compare(before: Path, after: Path, show: int) -> None:
    report = comparison.compare(recording.read(before), recording.read(after))
    for line in comparison.render(report, show):
        print(line)
    if report.differ:
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="answers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    prepare = commands.add_parser("prepare", help="add the catalogue and the reply set to a fresh folder of data")
    prepare.add_argument("folder", type=Path, help="data folder of the service")
    prepare.add_argument("--heed", default="heed", help="the `heed` command of the tree that serves")

    record = commands.add_parser("record", help="send all requests and write the answers")
    record.add_argument("url", help="URL of the service, such as http://127.0.0.1:8000")
    record.add_argument("file", type=Path, help="file for the answers, in JSON lines")
    for command in (prepare, record):
        command.add_argument("--names", choices=list(Names), default=Names.AFTER, help="which names the service has")

    compare = commands.add_parser("compare", help="compare two recordings; exit 1 if any answer differs")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--show", type=int, default=10, help="how many differences to print")
    return parser.parse_args()


if __name__ == "__main__":
    main()
