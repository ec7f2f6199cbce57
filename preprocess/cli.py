"""The `preprocess` command: raw clinical files to shard sets."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medcoss.command import Parser, add_debug, report_error, say
from medcoss.command import run as run_command
from medcoss.contracts import Kind, MedcossError, UsageError

if TYPE_CHECKING:
    from preprocess.conversion import Modality
    from preprocess.job import Job, Result
    from preprocess.labels import Table
    from preprocess.split import Salt

_MODALITIES = Path(__file__).parent / "modalities"
_PHANTOMS = "preprocess.phantoms.command"
_EXAMPLE = """examples:
  preprocess phantoms --out raw --seed 0
  preprocess xray --in raw/xray --out shards/xray --labels raw/xray/labels.csv
  preprocess ct --help
Options, labels, privacy and what each reason in outcomes.parquet means: docs/preprocess.md
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status (0 done, 1 failed, 2 usage, 3 done but some inputs failed)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments, unknown = build_parser(words).parse_known_args(words)
    except KeyboardInterrupt:
        report_error("interrupted: nothing was begun")
        return 1
    if unknown:
        # argparse would send the user to the help of all commands, which lists no options.
        Parser(prog=f"preprocess {arguments.command}").error(f"unrecognized arguments: {' '.join(unknown)}")
    action = _phantoms if arguments.command == "phantoms" else _convert
    return run_command(action, arguments, debug=arguments.debug)


def build_parser(words: Sequence[str]) -> Parser:
    """The parser of `preprocess`; of its commands only the one that `words` name has its options."""
    parser = Parser(
        prog="preprocess", description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in [*modality_names(), "phantoms"]:
        chosen = next((word for word in words if not word.startswith("-")), None) == name
        if name == "phantoms":
            module, summary = _PHANTOMS, "make raw sample data of all modalities, in clinical formats"
        else:
            module, summary = f"preprocess.modalities.{name}", _summary(_MODALITIES / f"{name}.py")
        # Only the chosen modality is imported: help stays fast, and a codec that is absent hurts its own modality only.
        epilog = f"example:\n  {importlib.import_module(module).EXAMPLE}" if chosen else None
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if chosen:
            if name != "phantoms":
                _add_common(command, name)
            importlib.import_module(module).add_arguments(command)
            add_debug(command)
    return parser


def modality_names() -> list[str]:
    """The modalities there are: the files of `preprocess/modalities`."""
    return sorted(path.stem for path in _MODALITIES.glob("*.py") if not path.stem.startswith("_"))


def _summary(path: Path) -> str:
    """A module's SUMMARY, read without importing it."""
    for node in ast.parse(path.read_bytes()).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "SUMMARY" for target in targets):
            return str(ast.literal_eval(cast(Any, node).value))
    return path.stem


def _add_common(parser: argparse.ArgumentParser, name: str) -> None:
    from preprocess.split import DEFAULT_SALT

    add = parser.add_argument
    add("--in", dest="inputs", nargs="+", type=Path, default=[Path("raw", name)], metavar="PATH",
        help=f"files and folders to convert (default raw/{name})")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the shard set; run again to go on or check")
    add("--workers", type=_positive, default=_cores(), metavar="N", help="processes (default: all cores)")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    add("--limit", type=_positive, metavar="N", help="convert N units (files, series, slides) only, drawn by the salt")
    add("--shard-size", type=_positive, metavar="N", help="samples a shard (default by kind)")
    add("--max-failures", type=_tolerance, metavar="N|P%",
        help="stop, status 1, when more files fail; staged work stays (default: never)")  # fmt: skip
    add("--dry-run", action="store_true", help="say what would be converted, write nothing")
    add(
        "--extend",
        action="store_true",
        help="take in inputs that are new or changed since the set was made, try lost ones again",
    )
    add("--no-qc", dest="qc", action="store_false", help="leave out qc/index.html")
    who = parser.add_argument_group("subjects and splits")
    who.add_argument("--split", default="train=0.9,val=0.05,test=0.05", metavar="FRACTIONS",
                     help="by subject (default %(default)s); a table's column `split` goes first")  # fmt: skip
    who.add_argument("--subject-column", default="subject", metavar="NAME",
                     help="column of tables that names the patient (default %(default)s)")  # fmt: skip
    who.add_argument("--subject-from", metavar="REGEX|CSV",
                     help="patient from the path (group 1), or a table with an id and the subject column")  # fmt: skip
    who.add_argument("--subject-alias", type=Path, metavar="CSV", help="columns alias,subject: names of one patient")
    who.add_argument("--salt-file", type=Path, default=Path(DEFAULT_SALT), metavar="FILE",
                     help="secret behind keys, tokens and splits, made once (default %(default)s)")  # fmt: skip
    labels = parser.add_argument_group("labels, for evaluation only")
    labels.add_argument("--labels", action="append", default=[], type=Path, metavar="CSV",
                        help="CSV, TSV: labels, subjects, splits; repeatable, the first that knows wins")  # fmt: skip
    labels.add_argument("--id-column", action="append", metavar="NAME",
                        help="column that names a file, folder or table row; repeatable (default file)")  # fmt: skip
    labels.add_argument(
        "--label-column", action="append", metavar="NAME", help="column of labels; repeatable (default label)"
    )
    labels.add_argument("--masks", action="append", default=[], type=Path, metavar="DIR",
                        help="folder of dense labels: not inputs; repeatable")  # fmt: skip


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _tolerance(text: str) -> int | float:
    """`12` is 12 files, `5%` is 0.05 of them."""
    try:
        value: int | float = float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError:
        value = -1
    if value < 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of files nor a percentage")
    return value


def make_job(arguments: argparse.Namespace) -> Job:
    """The job that a command line describes. Raises `UsageError` for values and tables that do not fit."""
    from preprocess import labels, split
    from preprocess.job import Job

    name = arguments.command
    module = f"preprocess.modalities.{name}"
    modality = cast("Modality", importlib.import_module(module))
    ids = tuple(arguments.id_column or ("file",))
    columns = tuple(arguments.label_column or ("label",))
    if arguments.out.resolve() in {path.resolve() for path in arguments.inputs}:
        raise UsageError(f"--out {arguments.out} is the folder of the inputs: name another one")
    for path in [*arguments.labels, *filter(None, [arguments.subject_alias])]:
        if not path.is_file():
            raise UsageError(f"no such table: {path}: check the path")
    for path in arguments.masks:
        # Masks that a typing error left among the inputs would become samples.
        if not path.is_dir():
            raise UsageError(f"no such folder: {path}: check --masks")
    subject_from, pattern, subject_table = arguments.subject_from, None, None
    is_table = subject_from and subject_from.lower().endswith((".csv", ".tsv")) and "(" not in subject_from
    if is_table and not Path(subject_from).is_file():
        raise UsageError(f"no such table: {subject_from}: check --subject-from")
    own = modality.settings(arguments)
    salt = _load_salt(arguments.salt_file)
    tables = [labels.read_table(path, ids, columns, arguments.subject_column) for path in arguments.labels]
    if arguments.labels and arguments.label_column and modality.spec(own).kind is not Kind.SEQUENCE:
        _require_labels(tables, columns)
    if is_table:
        subject_table = Path(subject_from)
        tables.insert(0, labels.read_table(subject_table, ids, (), arguments.subject_column))
        subject_from = labels.digest_table(subject_table)
    elif subject_from:
        pattern = split.parse_pattern(subject_from)
    aliases = split.read_aliases(arguments.subject_alias) if arguments.subject_alias else {}
    private = {option: value for option, value in own.items() if option.startswith("_")}
    settings = {
        **{option: value for option, value in own.items() if option not in private},
        "modality": name,
        "version": modality.spec(own).version,
        "id_columns": list(ids),
        "label_columns": list(columns),
        "label_tables": [labels.digest_table(path) for path in arguments.labels],
        "subject_column": arguments.subject_column,
        "subject_from": subject_from,
        "subject_alias": labels.digest_table(arguments.subject_alias) if arguments.subject_alias else None,
        "split": split.parse_fractions(arguments.split),
        "limit": arguments.limit,
        "shard_size": arguments.shard_size,
    }
    return Job(
        name=name, module=module, inputs=tuple(arguments.inputs), out=arguments.out, settings=settings, private=private,
        subjects=split.Subjects(salt, aliases, pattern), labels=labels.Labels(tuple(tables), columns),
        tables=tuple(filter(None, [*arguments.labels, subject_table, arguments.subject_alias])),
        masks=tuple(arguments.masks), workers=arguments.workers, limit=arguments.limit, shard_size=arguments.shard_size,
        max_failures=arguments.max_failures, extend=arguments.extend, dry_run=arguments.dry_run, qc=arguments.qc,
        debug=arguments.debug,
    )  # fmt: skip


def _load_salt(path: Path) -> Salt:
    """The salt in `path`, made there if it is not; a new one is told of, for it matches no earlier set."""
    from preprocess import split

    is_new = not path.expanduser().exists()
    salt = split.load_salt(path.expanduser())
    if is_new:
        say(f"a new salt was made in {path}: keep it, for sets made under another share neither patients nor splits")
    return salt


def _require_labels(tables: Sequence[Table], columns: Sequence[str]) -> None:
    """Raise `UsageError` for a label column that no table fills: a typing error, found before hours of work."""
    for column in columns:
        if not any(column in entry.labels for table in tables for entry in table.entries.values()):
            raise UsageError(f"--label-column {column}: no table of --labels has a value in such a column")


def _convert(arguments: argparse.Namespace) -> int:
    from preprocess.run import run

    job = make_job(arguments)
    try:
        result = run(job)
    except OSError as error:
        # A full disk is met in the middle of a file, where the system no longer says which.
        if error.filename is None:
            error.filename = os.fspath(job.out)
        raise
    if arguments.json:
        names = ("state", "inputs", "splits", "reasons", "fingerprint", "notes")
        print(json.dumps({name: getattr(result, name) for name in names}))
    else:
        _show(job, result)
    return result.exit_code if result.state != "dry run" else 0


def _show(job: Job, result: Result) -> None:
    from preprocess.progress import counted

    # Any order may come back from a manifest: reading comes first.
    order = ("read", "units", "written", "skipped", "failed")
    files = ", ".join(f"{result.inputs[what]:,} {what}" for what in order if what in result.inputs)
    print(f"{job.name}: {result.state}: {job.out} (files: {files})")
    for name, counts in result.splits.items():
        print(f"  {name}: {counted(counts['samples'], 'sample')} of {counted(counts['subjects'], 'subject')}")
    for status, reason, number in result.reasons:
        print(f"  {number:,} {status}: {reason}")
    for note in result.notes:
        print(f"  note: {note}")
    if sys.stdout.isatty():
        # File names may name patients: only the person at this terminal sees them, no log does.
        for file, outcome in result.failures[:20]:
            print(f"  failed: {file.path}: {outcome.reason} {outcome.message}")


def _phantoms(arguments: argparse.Namespace) -> int:
    status = importlib.import_module(_PHANTOMS).run(arguments)
    if not isinstance(status, int):
        raise MedcossError("phantoms gave no exit status: a defect, report it")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
