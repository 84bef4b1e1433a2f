"""Every image of a source accounted for: found, taken, or left out for a reason, in each split."""

from collections import Counter
from collections.abc import Mapping

from consistune.data.prepare.split import Rows
from consistune.data.prepared import SIDES, Account
from consistune.data.sources.base import Source
from consistune.errors import UserError, printable


def make_accounts(source: Source, rows: Rows, bad: Mapping[int, str]) -> list[Account]:
    """A row for training, one for held-out images, and one for each split of the source that is left out."""
    left: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    for name, reason in source.skipped:
        left[bool(source.held_out_names) and name.startswith(source.held_out_names)][reason] += 1
    skipped = [counter.total() for counter in left]
    for item, reason in bad.items():
        left[int(rows.side[item])][reason] += 1
    accounts = []
    for side, name in enumerate(SIDES):
        found = rows.count(side) + skipped[side]
        if found or side == 0:
            accounts.append(Account(name, found, found - left[side].total(), dict(left[side].most_common())))
    return accounts + [Account(p.split, p.images, 0, {p.reason: p.images}) for p in source.passed]


def check_allowed(source: Source, bad: Mapping[int, str], allowed: int | None) -> None:
    """Raises UserError where more images are left out than `allowed` (None: any number).

    A split that is left out counts where no other one is held out.
    """
    reasons = Counter(reason for _, reason in source.skipped) + Counter(bad.values())
    if source.own_held_out is None:
        reasons += Counter({f"{p.split}: {p.reason}": p.images for p in source.passed})
    if allowed is None or reasons.total() <= allowed:
        return
    names = [name for name, _ in source.skipped] + [source.name(item) for item in sorted(bad)]
    first = f", the first is {printable(names[0])}" if names else ""
    why = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(4))
    images = "image" if reasons.total() == 1 else "images"
    raise UserError(
        f"{reasons.total():,} {images} would be left out ({why}{first})",
        str(source.path),
        f"--allow-missing {reasons.total()} leaves them out",
    )
