"""The driver's store of checkpoints of the training state.

A checkpoint is a folder ``state-<number>`` with one part per node and a ``manifest.json``. The manifest says where in
the training it was taken, and has a checksum of every part. The files are written to a temporary folder, which is
renamed when it is complete. So a folder with the final name was complete once; the checksums detect later damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from tfspark.cluster.state.size import redistribute
from tfspark.errors import ConfigError
from tfspark.feed.ledger import Intervals, merged
from tfspark.protocol.values import Json

logger = logging.getLogger("tfspark")

FORMAT = 6
KEPT = 2
"""Number of checkpoints kept; if the newest is damaged, the one before is used. In addition, the newest checkpoint
between two epochs is kept: when Spark computes the rows of a started epoch again, they may be in other places."""
RESIZED = ("workers", "rows per worker and step")
"""Values that may differ between a run and the run it resumes, if the number of workers may change."""
_NAME = re.compile(r"state-(\d{6})")


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint.

    Attributes:
        path: its folder.
        passes: complete passes over the training rows.
        steps: steps done in the next pass.
        call: first pass of the ``train()`` call in progress.
        finished: whether that call had ended.
        rows: number of rows each worker has had of the pass in progress.
        used: those rows: partition -> intervals.
        sizes: partition -> number of rows, for the partitions of that pass that Spark had computed completely.
        layout: how Spark had divided the rows of that pass into partitions, see `Layout`.
        batch_rows: rows of a step over all workers, if each step of that pass used the rows at its own positions in the
            pass; otherwise 0.
        run: values that a run must have in common with the interrupted one.
        model: path, shape and type of every weight.
        files: file name of each node's part -> its SHA-256.
    """

    path: Path
    passes: int
    steps: int
    call: int
    finished: bool
    rows: tuple[int, ...]
    used: Mapping[int, Intervals]
    sizes: Mapping[int, int]
    layout: Json
    batch_rows: int
    run: Json
    model: Sequence[Json]
    files: Mapping[str, str]

    def to_json(self) -> Json:
        """Return the manifest."""
        return {"format": FORMAT, **{key: value for key, value in vars(self).items() if key != "path"}}

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint's manifest and check its parts.

        Raises:
            ValueError: the checkpoint is damaged or of another version; the message says what is wrong.
        """
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            if (number := manifest.pop("format")) != FORMAT:
                raise ValueError(f"expected format {FORMAT}, got {number} of another version of tfspark")
            used, sizes = (
                {int(partition): value for partition, value in manifest.pop(name).items()}
                for name in ("used", "sizes")
            )
            found = cls(path=path, used=used, sizes=sizes, rows=tuple(manifest.pop("rows")), **manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its manifest.json cannot be read: {error}") from None
        for name, digest in found.files.items():
            if not (path / name).is_file() or _digest(path / name) != digest:
                raise ValueError(f"{name} is missing or damaged")
        return found

    def redistributed(self, num_nodes: int) -> Checkpoint:
        """Return the same checkpoint for another number of nodes."""
        return replace(self, rows=redistribute(self.rows, num_nodes))

    def can_be_replayed(self, batch_rows: int) -> bool:
        """Whether steps of so many rows by position, from the beginning of the pass, are those of this checkpoint."""
        return self.batch_rows == batch_rows != 0

    @property
    def fully_trained(self) -> dict[int, int]:
        """Partitions of the pass in progress that were trained on completely -> their number of rows."""
        return {p: rows for p, rows in self.sizes.items() if rows and self.used.get(p) == [[0, rows]]}

    @property
    def parts(self) -> list[str]:
        """Names of the parts in the order of ranks; nodes ask for them by these names."""
        return [f"{self.path.name}/{name}" for name in sorted(self.files)]


@dataclass
class _Draft:
    """A checkpoint that is still receiving its parts."""

    path: Path
    of: int
    is_lost: bool = False
    headers: dict[int, Json] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class CheckpointStore:
    """Keeps the newest checkpoints of one run. Methods are called under the control plane's lock.

    Args:
        directory: where to keep them; created when the first part arrives.
        resumed: the checkpoint from which this run continues.
    """

    def __init__(
        self,
        directory: Path,
        resumed: Checkpoint | None,
    ):
        self.directory = directory
        self.run: Json = {}
        """Values that a resuming run must have in common with this one."""
        self.batch_rows = 0
        """As in a checkpoint, for the workers of the current incarnation."""
        self._kept = [] if resumed is None else [*_between_epochs(resumed), resumed]
        self._base = resumed
        self._drafts: dict[tuple[int, int, bool], _Draft] = {}
        names = [match[0] for match in _numbered(directory)] + [kept.path.name for kept in self._kept]
        self._number = max((int(name.rpartition("-")[2]) for name in names), default=0)

    def place(self, header: Json) -> Path:
        """Return the path to which a node's part is to be written."""
        draft = self._draft(header)
        draft.path.mkdir(parents=True, exist_ok=True)
        return draft.path / f"part-{header['rank']:04d}.npz"

    def add(
        self, header: Json, part: Path, digest: str, sizes: Mapping[int, int], layout: Json
    ) -> Checkpoint | None:
        """Add a part that was written; return the checkpoint if it is complete now.

        Args:
            header: the node's description of the part.
            part: the file it was written to, see `place`.
            digest: its SHA-256.
            sizes: partition -> number of rows, as far as known for the pass.
            layout: how Spark has divided the rows of the pass.
        """
        draft = self._draft(header)
        if part.parent != draft.path:
            return None  # From an incarnation that is over.
        if draft.is_lost:
            shutil.rmtree(draft.path, ignore_errors=True)
            return None
        draft.headers[header["rank"]] = header
        draft.files[part.name] = digest
        if len(draft.files) < draft.of:
            return None
        del self._drafts[_key(header)]
        return self._keep(draft, sizes, layout)

    def drop(self, header: Json) -> None:
        """Remove all parts of a checkpoint for which the disk had no room."""
        draft = self._drafts.get(_key(header))
        if draft is not None:
            draft.is_lost = True
            shutil.rmtree(draft.path, ignore_errors=True)

    def file(self, name: str) -> Path:
        """Return the file of a part named in `Checkpoint.parts`; it may belong to the run that is resumed."""
        folder, _, file = name.partition("/")
        for kept in (*self._kept, *([] if self._base is None else [self._base])):
            if kept.path.name == folder and file in kept.files:
                return kept.path / file
        raise ValueError(f"expected a part of a checkpoint that is kept, got {name!r}")

    def _forget_drafts(self) -> None:
        """Remove the unfinished checkpoints of an incarnation that is over."""
        for draft in self._drafts.values():
            shutil.rmtree(draft.path, ignore_errors=True)
        self._drafts.clear()

    def forget_all(self) -> None:
        """Remove the checkpoints of this run. The one it was resumed from stays on disk, but is not used again."""
        for kept in self._kept:
            if kept.path.parent == self.directory:
                shutil.rmtree(kept.path, ignore_errors=True)
        self._kept, self._base = [], None
        self._forget_drafts()

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint; log a warning for damaged ones and skip them."""
        while self._kept:
            try:
                found = Checkpoint.load(self._kept[-1].path)
            except ValueError as error:
                logger.warning("the checkpoint %s is left out: %s", self._kept.pop().path, error)
            else:
                self._base = found
                self._forget_drafts()
                return found
        self._base = None
        self._forget_drafts()
        return None

    def newest_whole(self) -> Checkpoint | None:
        """Return the newest checkpoint between two epochs, for a pass whose rows are in other places now.

        Later checkpoints are not used again.
        """
        while self._kept and self._kept[-1].steps:
            self._kept.pop()
        return self.newest()

    def begin_at(self, point: Checkpoint) -> Checkpoint:
        """Record where an incarnation begins; the rows it uses are added to those the checkpoint has used."""
        self._base = point
        return point

    def has(self, passes: int) -> bool:
        """Return whether the newest checkpoint was taken exactly after this number of complete passes."""
        return bool(self._kept) and self._kept[-1].passes == passes and not self._kept[-1].steps

    def drop_drafts(self) -> None:
        """Remove incomplete checkpoints."""
        for aside in self.directory.glob(".state-*"):
            shutil.rmtree(aside, ignore_errors=True)

    def _draft(self, header: Json) -> _Draft:
        key = _key(header)
        if key not in self._drafts:
            self._number += 1
            self._drafts[key] = _Draft(self.directory / f".state-{self._number:06d}", header["of"])
        return self._drafts[key]

    def _keep(self, draft: _Draft, sizes: Mapping[int, int], layout: Json) -> Checkpoint:
        chief, base = draft.headers[0], self._base
        passes, steps = chief["passes"], chief["steps"]
        goes_on = base is not None and base.steps and base.passes == passes and steps
        # Steps that are replayed note their rows again.
        before = base if base and goes_on and not base.can_be_replayed(self.batch_rows) else None
        ranks = range(draft.of)
        found = Checkpoint(
            path=draft.path.with_name(draft.path.name.removeprefix(".")),
            passes=passes,
            steps=steps,
            call=chief["facts"]["progress"]["call"],
            finished=chief["facts"]["progress"]["finished"],
            rows=tuple(
                draft.headers[rank]["rows"] + (before.rows[rank] if before and rank < len(before.rows) else 0)
                for rank in ranks
            ),
            used=merged([before.used if before else {}, *(draft.headers[rank]["used"] for rank in ranks)]),
            sizes={**(before.sizes if before else {}), **(sizes if steps else {})},
            layout=layout if steps else {},
            batch_rows=0 if before else self.batch_rows,
            run=self.run,
            model=chief["facts"]["model"],
            files=draft.files,
        )
        (draft.path / "manifest.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
        draft.path.rename(found.path)
        self._kept.append(found)
        self._drop_old()
        return found

    def _drop_old(self) -> None:
        whole = [kept for kept in self._kept if not kept.steps][-1:]
        for old in self._kept[:-KEPT]:
            if old not in whole:
                self._kept.remove(old)
                if old.path.parent == self.directory:  # Otherwise it belongs to the run that is resumed.
                    shutil.rmtree(old.path, ignore_errors=True)


def write_part(path: Path, batches: Iterable[pa.RecordBatch]) -> str:
    """Write an uploaded part; return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for batch in batches:
            for data in batch.column(1):
                out.write(data.as_buffer())
                digest.update(data.as_buffer())
    return digest.hexdigest()


def newest_in(directory: Path) -> Checkpoint:
    """Return the newest complete checkpoint of an interrupted run.

    Raises:
        ConfigError: there is none.
    """
    wrong = []
    for match in sorted(_numbered(directory), key=lambda match: match[1], reverse=True):
        try:
            return Checkpoint.load(directory / match[0])
        except ValueError as error:
            wrong.append(f"{match[0]}: {error}")
    raise ConfigError(
        f"expected a checkpoint state-NNNNNN to resume from in {directory}, found "
        f"{'; '.join(wrong) or 'none'}; a run keeps them in its run directory when max_restarts is 1 or more"
    )


def check_same_run(found: Checkpoint, run: Json, may_differ: Collection[str] = ()) -> None:
    """Reject a checkpoint of a run that differs from this one in more than `may_differ`.

    Raises:
        ConfigError: the message names what differs.
    """
    wrong = [
        f"{key} {run[key]!r}, it has {found.run.get(key)!r}"
        for key in run
        if key not in may_differ and run[key] != found.run.get(key)
    ]
    if wrong:
        raise ConfigError(
            f"expected the checkpoint {found.path} to be of a run with {'; '.join(wrong)}; resume with the same, or "
            "start anew"
        )


def _between_epochs(found: Checkpoint) -> list[Checkpoint]:
    """Return the newest older checkpoint between two epochs, if `found` is within an epoch; else an empty list."""
    directory = found.path.parent
    for match in (
        sorted(_numbered(directory), key=lambda match: match[1], reverse=True) if found.steps else ()
    ):
        with contextlib.suppress(ValueError):
            if match[0] < found.path.name and not (before := Checkpoint.load(directory / match[0])).steps:
                return [before]
    return []


def _numbered(directory: Path) -> list[re.Match[str]]:
    if not directory.is_dir():
        return []
    return [match for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]


def _key(header: Json) -> tuple[int, int, bool]:
    return header["passes"], header["steps"], header["facts"]["progress"]["finished"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
