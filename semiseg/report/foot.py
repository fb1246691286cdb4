"""The text around a grid's table: what the numbers are, how to read them, what they rest on.

Lines are Markdown; whatever they name is escaped.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from semiseg.base import weights
from semiseg.base.backbone import ChosenBackbone
from semiseg.base.parameters import Evaluation, Params
from semiseg.base.paths import PretrainingRun, Run
from semiseg.evaluation.record import Record
from semiseg.report.collect import BASELINE, Results, last
from semiseg.report.markup import escape
from semiseg.report.reference import Logged
from semiseg.report.statistics import BOOTSTRAP_FROM
from semiseg.report.trust import command

CELLS_NAMED = 6  # most cells that are named as not run; the table's empty cells show the others


def headline(results: Results) -> str:
    """Say what the numbers are."""
    return f"mIoU (%) on the {_lists(results)} list at the **last step**."


def notes(results: Results) -> list[str]:
    """Say how to read a cell, what the figures are compared with, and what they rest on."""
    return [
        *shared_sets(results),
        *reading(results),
        *smallest_differences(results),
        *compared(results),
        *setting(results),
        *origin(results.records.values()),
    ]


def shared_sets(results: Results) -> list[str]:
    """Warn of seeds whose labelled lists hold the same images."""
    shared = results.shared_sets()
    said = [
        f"{' and '.join(map(str, seeds))} of {results.heading(split)}"
        for split, groups in shared.items()
        for seeds in groups
    ]
    if not said:
        return []
    return [
        f"**Warning:** the lists of seeds {'; '.join(map(escape, said))} hold the same labelled images. Such "
        "seeds count as one: their figures are averaged first."
    ]


def reading(results: Results) -> list[str]:
    """Say how to read a cell."""
    said = [
        "Columns: labelled share of the training set (labelled images). Cells: mean ± standard deviation "
        f"over labelled sets (their number). Gain: difference to {BASELINE} on the same labelled images, "
        "seed by seed, with its 95 % interval. An empty cell was not run."
    ]
    if any(results.ratio(split) == 1 for split in results.grid.splits):
        said.append("With all images labelled there is one labelled set; there, each seed counts.")
    return said


def smallest_differences(results: Results) -> list[str]:
    """Say which intervals the table has, and which differences its labelled sets are too few to show."""
    gains = {
        split: [
            gain
            for recipe in results.recipes
            if (gain := results.gain(recipe, split, last)) is not None and gain.smallest is not None
        ]
        for split in results.grid.splits
    }
    counts = {gain.count for each in gains.values() for gain in each}
    if not counts:
        return []
    kinds = []
    if min(counts) < BOOTSTRAP_FROM:
        kinds.append("paired t, mean ± t(0.975, n − 1) · s / √n")
    if max(counts) >= BOOTSTRAP_FROM:
        kinds.append(f"percentile bootstrap from {BOOTSTRAP_FROM} labelled sets on")
    points = [
        f"{escape(results.heading(split))}: {_from_to([100 * (gain.smallest or 0) for gain in each])}"
        for split, each in gains.items()
        if each
    ]
    return [
        f"Intervals: {'; '.join(kinds)}; s is the standard deviation of the n differences.",
        "Smallest difference that the labelled sets can show, t(0.975, n − 1) · s / √n, in points of mIoU: "
        f"{'; '.join(points)}.",
    ]


def _from_to(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}, by recipe"


def compared(results: Results) -> list[str]:
    """Say where the published figures are from."""
    said = []
    if results.printed:
        sources = ", ".join(dict.fromkeys(each.source for each in results.printed.values()))
        said.append(
            f"Published: {escape(sources)}, for the same network and labelled share under the paper's own "
            "settings. Difference: measured minus published; a figure that was not seen in print is an empty "
            "cell."
        )
    if results.logged:
        said.append(_logs([each for logs in results.logged.values() for each in logs.trainings]))
    return said


def _logs(trainings: list[Logged]) -> str:
    sources = _joined(each.source.partition(" ")[0] for each in trainings)
    crops = _joined(str(each.crop) for each in trainings)
    ways = _joined(each.evaluation.replace("_", " ") for each in trainings)
    return (
        "Published best, published last: the best and the last validation in the authors' own training logs "
        f"({sources}) with the same network and labelled list, crops of {crops} pixels, scored: {ways}; mean "
        "± standard deviation (trainings). A paper prints the best validation, picked on the list that it "
        "reports; compare the last one."
    )


def _joined(values: Iterable[str]) -> str:
    return escape(", ".join(sorted(set(values))))


def setting(results: Results) -> list[str]:
    """Describe each protocol, and which network is scored."""
    said = [describe(results.params, name) for name in results.protocols()]
    for name in results.recipes:
        recipe = results.params.recipes[name]
        if changed := {**recipe.network, **recipe.evaluation}:
            fields = ", ".join(f"{field}: {str(value).lower()}" for field, value in changed.items())
            said.append(f"`{name}` changes the protocol's {escape(fields)}.")
    scored: dict[str, list[str]] = {}
    for run, record in results.records.items():
        recipes = scored.setdefault(record.headline, [])
        if run.recipe not in recipes:
            recipes.append(run.recipe)
    if len(scored) > 1:
        networks = "; ".join(
            f"the {headline} of {', '.join(scored[headline])}" for headline in sorted(scored)
        )
        said.append(f"Scored network: {escape(networks)}.")
    return said


def describe(params: Params, name: str) -> str:
    """Describe a protocol: network, weights, training, scoring."""
    protocol = params.protocols[name]
    network = protocol.network
    return (
        f"Protocol `{name}`: {network.head} on {network.backbone} ({weights_source(params, network)}; output "
        f"stride {network.output_stride}), {protocol.steps:,} steps, batch {protocol.labelled_batch} "
        f"labelled + {protocol.unlabelled_batch} unlabelled, crop {protocol.geometry.crop}, "
        f"{protocol.precision}; scored on {scoring(protocol.evaluation)}."
    )


def weights_source(params: Params, network: ChosenBackbone) -> str:
    """Say where a backbone's first weights come from, and which digits identify them."""
    if network.weights == "none":
        return "random weights"
    pretraining = PretrainingRun.named(network.weights)
    if pretraining is not None:
        recipe = params.pretraining[pretraining.name]
        return (
            f"pretrained by {recipe.method} on {recipe.dataset} without masks, {recipe.steps:,} steps of "
            f"{recipe.batch} images, from {weights_source(params, recipe)}"
        )
    sha256 = weights.digest(network.weights, network.backbone)[:12]
    if network.weights == weights.HUB:
        return f"weights of timm's hub, sha256 `{sha256}`"
    published = weights.PUBLISHED.get((network.weights, network.backbone))
    if published is None:
        return f"weights of a file, sha256 `{sha256}`"
    source = published.package or published.address
    return f"{network.weights} weights from {source}, sha256 `{sha256}`"


def scoring(evaluation: Evaluation) -> str:
    """Say on what a network is scored: whole images or windows, and at which size."""
    long_side, window = evaluation.long_side, evaluation.window
    size = "at their own size" if long_side is None else f"at a long side of {long_side} pixels"
    mirrored = ", averaged with their mirror images" if evaluation.flip else ""
    if window is None:
        return f"whole images {size}{mirrored}"
    apart = f"{evaluation.stride:.3g} of their side apart"
    return f"windows of {window} pixels, {apart}, in images {size}{mirrored}"


def origin(records: Iterable[Record]) -> list[str]:
    """Name revisions, devices and days of the runs in a table."""
    provenances = [record.provenance for record in records]
    if not provenances:
        return []
    return [
        f"Revision: {_counted(f'`{each.revision}`' for each in provenances)}.",
        f"Device: {_counted(escape(each.device) for each in provenances)}.",
        f"Date (UTC): {_counted(each.finished[:10] for each in provenances)}.",
    ]


def missing(results: Results) -> list[str]:
    """Return what was not run and the command that runs it, as at most one line."""
    runs = results.missing()
    return [f"{grouped(runs)}. Run `{command(results.name)}`"] if runs else []


def warning(results: Results) -> str:
    """Say what the second table is, and why it is not the headline."""
    return (
        "Not the headline: each run at the step whose network scored highest on the val list, scored on "
        f"the {_lists(results)} list. Picking a checkpoint with labels that training was not given flatters "
        "every method."
    )


def _lists(results: Results) -> str:
    return " or ".join(sorted({results.dataset(split).evaluate for split in results.grid.splits}))


def _counted(values: Iterable[str]) -> str:
    """Join the distinct values, with the number of runs of each if they differ."""
    counts: Mapping[str, int] = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({runs_of(counts[value])})" for value in sorted(counts))


def runs_of(count: int) -> str:
    """Write a number of runs: "1 run", "2 runs"."""
    return f"{count} run" if count == 1 else f"{count} runs"


def grouped(runs: list[Run]) -> str:
    """Name runs cell by cell, "3 runs: cmb on voc-1_8 (seeds 0, 1), …", and cut the list short."""
    cells: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        cells.setdefault((run.recipe, run.split), []).append(run.seed)
    said = [
        f"{recipe} on {split} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))})"
        for (recipe, split), seeds in cells.items()
    ]
    if len(said) > CELLS_NAMED:
        said = [*said[:CELLS_NAMED], f"and {len(said) - CELLS_NAMED} more cells"]
    return f"{runs_of(len(runs))}: {escape(', '.join(said))}"
