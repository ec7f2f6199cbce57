"""The `medcoss` command: each verb reads its arguments, calls one function and prints what it gives."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medcoss.command import Parser, Progress, add_debug, run
from medcoss.contracts import UsageError
from medcoss.salt import DEFAULT_SALT, read_aliases, read_salt, subject_token

Verb = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the process's exit status."""
    options = build_parser().parse_args(arguments)
    return run(options.verb, options, debug=options.debug)


def build_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(prog="medcoss", description="Look after shard sets, runs and weights of continual pre-training.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, function: Verb, summary: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        added.set_defaults(verb=function)
        add_debug(added)
        return added

    added = verb("doctor", _doctor, "say what this machine has, what is missing and how to get it", "medcoss doctor")
    _json(added)

    added = verb(
        "verify", _verify, "check every file of shard sets against their manifests", "medcoss verify shards/xray"
    )
    added.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="folder of a shard set or buffer")
    _json(added)

    added = verb(
        "show", _show, "print a shard set's manifest and some of its samples", "medcoss show shards/ct --records 2"
    )
    _directory(added)
    added.add_argument("--records", type=_count, default=3, help="samples to show (default 3)")
    added.add_argument("--split", default="train", help="split they are taken from (default train)")
    _json(added)

    added = verb(
        "stats", _stats, "count labels and spread of geometry over a shard set", "medcoss stats shards/xray --json"
    )
    _directory(added)
    _json(added)

    added = verb(
        "erase",
        _erase,
        "take a withdrawn patient out of shard sets, buffers and runs",
        "medcoss erase --subject P0017 shards/* runs/default",
    )
    who = added.add_mutually_exclusive_group(required=True)
    who.add_argument("--subject", metavar="ID", help="the patient's name or number as the raw inputs spell it")
    who.add_argument("--token", help="the pseudonym in the samples' records (`medcoss show`), where no name was known")
    added.add_argument("--subject-alias", type=Path, metavar="CSV", help="columns alias,subject, as for preprocess")
    added.add_argument("--salt-file", type=Path, metavar="FILE", help=f"the sets' salt (default {DEFAULT_SALT})")
    added.add_argument("--dry-run", action="store_true", help="say what would go, change nothing")
    added.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="shard set, buffer, or run (a folder)")
    _json(added)

    added = verb("status", _status, "say where a run stands", "medcoss status runs/default")
    _run_directory(added)
    _json(added)

    added = verb("evaluate", _evaluate, "probe every finished stage of a run anew", "medcoss evaluate runs/default")
    _run_directory(added)
    _json(added)

    added = verb("report", _report, "write a run's report as one HTML file", "medcoss report runs/default")
    _run_directory(added)
    added.add_argument("--out", type=Path, help="file to write (default RUN/report.html)")

    added = verb(
        "embed",
        _embed,
        "embed every sample of a split: one vector a sample",
        "medcoss embed --weights runs/default/stages/ct/model.safetensors --in shards/ct --out ct.safetensors",
    )
    added.add_argument("--weights", type=Path, required=True, help="a stage's model.safetensors")
    added.add_argument("--in", dest="shards", type=Path, required=True, metavar="SHARDS", help="folder of a shard set")
    added.add_argument("--out", type=Path, required=True, help="file to write (safetensors: vectors, keys)")
    added.add_argument("--split", default="train", help="split to embed (default train)")
    added.add_argument("--batch-size", type=_count, default=64, help="samples at once (default 64)")

    added = verb(
        "import-weights",
        _import_weights,
        "turn a released MedCoSS checkpoint into a model file",
        "medcoss import-weights checkpoint.pth --out medcoss.safetensors",
    )
    added.add_argument("file", type=Path, metavar="FILE", help="checkpoint of the MedCoSS authors (.pth)")
    added.add_argument("--out", type=Path, required=True, help="model file to write")
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of a shard set or buffer")


def _run_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, for example runs/default")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _print(arguments: argparse.Namespace, value: Any, text: str) -> None:
    if arguments.json:
        print(json.dumps(value, indent=1, ensure_ascii=False))
    else:
        sys.stdout.write(text)


def _doctor(arguments: argparse.Namespace) -> int:
    from medcoss.doctor import as_text, examine

    findings = examine()
    _print(arguments, [finding.to_json() for finding in findings], as_text(findings))
    return 1 if any(finding.state == "missing" for finding in findings) else 0


def _verify(arguments: argparse.Namespace) -> int:
    from medcoss.shards import MANIFEST, set_folders, unlisted, verify

    found: dict[str, list[dict[str, str]]] = {}
    folders, notes = set_folders(arguments.directories)
    if not folders:
        raise UsageError(f"no shard set among {len(notes)} path(s): name the folder of a set")
    for directory in folders:
        with Progress(
            sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()), f"{directory}, bytes"
        ) as progress:
            problems = verify(directory, progress.advance)
        found[str(directory)] = [{"file": problem.file, "what": problem.what} for problem in problems]
        if not any(problem.file == MANIFEST for problem in problems):
            notes += [f"{directory / name} is not part of the set: not checked" for name in unlisted(directory)]
    text = "".join(
        f"{directory}: {'sound' if not problems else f'{len(problems)} problem(s)'}\n"
        + "".join(f"  {problem['file']}: {problem['what']}\n" for problem in problems)
        for directory, problems in found.items()
    )
    _print(arguments, found, text)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return 1 if any(found.values()) else 0


def _show(arguments: argparse.Namespace) -> int:
    from medcoss.report.set_view import as_text, describe
    from medcoss.shards import ShardSet

    described = describe(ShardSet.open(arguments.directory), arguments.split, arguments.records)
    _print(arguments, described, as_text(described))
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from medcoss.report.set_view import as_text, statistics
    from medcoss.shards import ShardSet

    shard_set = ShardSet.open(arguments.directory)
    with Progress(sum(entry.samples for entry in shard_set.manifest.splits.values()), "records") as progress:
        counted = statistics(shard_set, progress.advance)
    _print(arguments, counted, as_text(counted))
    return 0


def _erase(arguments: argparse.Namespace) -> int:
    from medcoss.continual.erase import LIMITS, erase

    token, salt_id, names = arguments.token, None, set()
    if token is None:
        salt = read_salt((arguments.salt_file or Path(DEFAULT_SALT)).expanduser())
        aliases = read_aliases(arguments.subject_alias) if arguments.subject_alias else {}
        token, salt_id = subject_token(salt, arguments.subject, aliases), salt.id
        known = {arguments.subject, *aliases, *aliases.values()}
        names = {name for name in known if subject_token(salt, name, aliases) == token}
    results = erase(arguments.directories, token, salt_id=salt_id, names=names, dry_run=arguments.dry_run)
    _print(arguments, [vars(result) for result in results], "".join(f"{result.line()}\n" for result in results))
    if not arguments.dry_run:
        print("\n".join(f"note: {limit}" for limit in LIMITS), file=sys.stderr)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from medcoss.continual.run import Run
    from medcoss.report.status import status, status_text

    state = status(Run(arguments.run))
    _print(arguments, state, status_text(state))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from medcoss.continual.run import Run
    from medcoss.evaluate.retention import evaluate_run
    from medcoss.report.retention_view import retention_table

    opened = Run(arguments.run)
    opened.config  # noqa: B018 -- refuses a folder that is no run before a lock file is left in it
    with opened.lock():
        retention = evaluate_run(opened, lambda stage: print(f"evaluating after {stage}", file=sys.stderr, flush=True))
    _print(arguments, retention.to_json(), retention_table(retention))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from medcoss.continual.run import Run
    from medcoss.evaluate.retention import read_retention, retention_path
    from medcoss.report.retention_view import retention_table
    from medcoss.report.run_report import write_report

    written = write_report(Run(arguments.run), arguments.out)
    retention = read_retention(retention_path(arguments.run))
    if retention is not None:
        print(retention_table(retention))
    print(written)
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    import torch

    from medcoss.config import DataConfig
    from medcoss.continual.embeddings import embed_split
    from medcoss.model.weights import fingerprint, load_encoder
    from medcoss.shards import ShardSet

    shard_set = ShardSet.open(arguments.shards)
    shard_set.split(arguments.split)
    table = embed_split(
        load_encoder(arguments.weights).to("cuda" if torch.cuda.is_available() else "cpu"),
        shard_set,
        arguments.split,
        data=DataConfig(),
        batch_size=arguments.batch_size,
        model_fingerprint=fingerprint(arguments.weights),
    )
    table.save(arguments.out)
    print(f"{arguments.out}: {len(table.keys)} vectors of {table.vectors.shape[1]} numbers")
    return 0


def _import_weights(arguments: argparse.Namespace) -> int:
    from medcoss.model.import_reference import import_reference
    from medcoss.model.weights import fingerprint, save_model

    model = import_reference(arguments.file)
    save_model(arguments.out, model, {"imported_sha256": fingerprint(arguments.file)})
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
