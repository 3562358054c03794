"""The command `stoker simulate`. Imports only click at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stoker.command import guarded, print_json

if TYPE_CHECKING:
    from stoker_ops.simulate.setup import Setup
    from stoker_ops.simulate.traces import Arrival

BUDGETS = {"continuous": 8192, "padded": 32_768}
ROWS = {"continuous": 64, "padded": 512}
CACHE_LENGTHS = 4
"""Of the longest request, how many the cache holds, unless it is given."""

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SOME = click.IntRange(1)


def trace_options(command: Any) -> Any:
    """Add the options that say what is replayed."""
    options = [
        click.option("--trace", required=True, type=FILE, help="Azure CSV, Mooncake JSONL, or JSONL of your own."),
        click.option("--requests", type=SOME, metavar="N", help="Only the first N of the trace."),
        click.option("--repeat", type=SOME, default=1, help="Every request N times over.", metavar="N"),
        click.option("--rate", type=click.FloatRange(0, min_open=True), default=1.0, help="Arrivals X times as fast."),
        click.option("--saturated", is_flag=True, help="All wait from the start."),
        click.option("--max-tokens", type=SOME, metavar="N", help="What clients ask for; default: what they get."),
        click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Time to live, s; default: none."),
        click.option("--max-waiting", type=SOME, metavar="N", help="Refuse above so many; default: no cap."),
        click.option("--displace", is_flag=True, help="There, better ones take the place of the worst."),
        click.option("--check-deadlines", is_flag=True, help="Refuse what could not be done within --timeout."),
        click.option("--weight", "weights", multiple=True, metavar="TENANT=W", help="A tenant's share; default: 1."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def fleet_options(command: Any) -> Any:
    """Add the options that say what it runs on."""
    options = [
        click.option("--workers", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many."),
        click.option(
            "--profile",
            "profiles",
            multiple=True,
            metavar="FILE|zero",
            help="What a step costs (`stoker profile`); default: an H100. Given more than once: workers take turns.",
        ),
        click.option("--mode", type=click.Choice(["continuous", "padded"]), default="continuous", show_default=True),
        click.option("--max-model-len", type=click.IntRange(2), default=131_072, show_default=True),
        click.option("--max-num-seqs", type=SOME, help=f"Rows of a batch; default {ROWS['continuous']}."),
        click.option("--max-num-batched-tokens", type=SOME, help="Tokens of a step (8192) or padded batch (32768)."),
        click.option("--kv-cache-tokens", type=SOME, help="Default: 4 x max-model-len."),
        click.option("--overhead-ms", type=click.FloatRange(0), default=1.0, help="Submit or settle to tick; 1."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@trace_options
@fleet_options
@click.option("--slo-ttft-ms", type=click.FloatRange(0), default=2000.0, show_default=True, help="First token within.")
@click.option("--slo-tpot-ms", type=click.FloatRange(0), default=100.0, show_default=True, help="Each later within.")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Run the baselines, too.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw to this .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@guarded
def simulate(
    slo_ttft_ms: float, slo_tpot_ms: float, compare: bool, plot: Path | None, as_json: bool, **options: Any
) -> None:
    """Replay a trace through the scheduler's own policy, in virtual time.

    Says how many workers a load needs: latencies, goodput, how full batches
    are, and how busy workers, next to serving in order of arrival. Settings
    of the scheduler are those of the environment. Needs no Redis.

    \b
    Examples:  stoker simulate --trace trace.csv --workers 4
               stoker simulate --trace trace.csv --rate 8 --plot fleet.png
               stoker simulate --trace trace.jsonl --mode padded --saturated
    """
    from stoker.config import load_config
    from stoker_ops.simulate.figures import Objective, figures
    from stoker_ops.simulate.plot import check_plot, draw
    from stoker_ops.simulate.policies import policies
    from stoker_ops.simulate.replay import Replay

    if plot:
        check_plot(plot)
    setup, arrivals, config = _setup(options), _arrivals(options), load_config()
    chosen = policies(config, setup.mode, _weights(options["weights"]), mixed=len(setup.profiles) > 1)
    runs = {
        name: Replay(arrivals, setup, policy, config).to_end()
        for name, policy in chosen.items()
        if compare or name == "stoker"
    }
    objective = Objective(slo_ttft_ms, slo_tpot_ms)
    found = {name: figures(run, arrivals, setup, objective) for name, run in runs.items()}
    if plot:
        draw(runs, plot)
    if as_json:
        ours = found.pop("stoker")
        print_json({**ours, "mode": setup.mode, "workers": setup.workers, "baselines": found})
    else:
        _print(found, setup)


def _setup(options: Mapping[str, Any]) -> Setup:
    """Return the fleet; raises `ConfigError` for limits that no worker would take."""
    from stoker_ops.simulate.setup import H100_8B, Setup
    from stoker_workers.engines.continuous import check_limits
    from stoker_workers.engines.sim import load_profile

    mode = options["mode"]
    rows, budget = options["max_num_seqs"] or ROWS[mode], options["max_num_batched_tokens"] or BUDGETS[mode]
    cache = options["kv_cache_tokens"] or CACHE_LENGTHS * options["max_model_len"]
    check_limits(rows, budget, cache)
    return Setup(
        mode=mode,
        workers=options["workers"],
        profiles=[load_profile(name) for name in options["profiles"]] or [H100_8B],
        max_model_len=options["max_model_len"],
        max_num_seqs=rows,
        max_num_batched_tokens=budget,
        kv_cache_tokens=cache,
        overhead_ms=options["overhead_ms"],
        max_waiting=options["max_waiting"],
        displace=options["displace"],
        check_deadlines=options["check_deadlines"],
    )


def _weights(given: Sequence[str]) -> dict[str, float]:
    """Return the weights by tenant; raises `InvalidRequest` naming a wrong one."""
    from stoker.config import check_name
    from stoker.errors import InvalidRequest
    from stoker.tenants import check_setting

    found = {}
    for text in given:
        tenant, _, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            raise InvalidRequest("weight", "must be TENANT=NUMBER", text) from None
        found[check_name("tenant", tenant)] = check_setting("weight", weight)
    return found


def _arrivals(options: Mapping[str, Any]) -> list[Arrival]:
    from stoker_ops.simulate.traces import read_trace, shaped

    return shaped(
        read_trace(options["trace"])[: options["requests"]],
        repeat=options["repeat"],
        rate=None if options["saturated"] else options["rate"],
        max_tokens=options["max_tokens"],
        timeout=options["timeout"],
    )


def _print(found: Mapping[str, Mapping[str, Any]], setup: Setup) -> None:
    """Print a row for each figure, a column for each policy."""
    from stoker.table import Column, FittedTable, milliseconds, print_tables

    def row(title: str, shown: Any) -> tuple[str, ...]:
        return (title, *(shown(one) for one in found.values()))

    def share(name: str) -> Any:
        return lambda one: f"{one[name]:.3f}"

    counts = ("requests", "completed", "expired", "refused", "displaced", "preempted")
    rows = [row(name, lambda one, name=name: f"{one[name]:,}") for name in counts]
    for name in ("queue", "ttft", "e2e"):
        for rank in ("p50", "p99"):
            rows.append(row(f"{name} {rank}", lambda one, name=name, rank=rank: milliseconds(one[f"{name}_ms"][rank])))
    rows += [
        row("goodput, requests/s", lambda one: f"{one['goodput_rps']:,.2f}"),
        row("tokens/s", lambda one: f"{one['tokens_per_s']:,.0f}"),
        row("padding efficiency", share("padding_efficiency")),
        row("batch fill", share("batch_fill")),
        row("utilization", share("utilization")),
        row("tokens by profile", lambda one: ", ".join(f"{part:.2f}" for part in one["token_shares"])),
        row("affinity kept", lambda one: "-" if one["affinity"] is None else f"{one['affinity']:.3f}"),
        row("fairness", share("fairness")),
        row("deciding, us/request", lambda one: f"{one['decision_us_per_request']:.0f}"),
    ]
    if len(setup.profiles) == 1:
        rows = [one for one in rows if one[0] != "tokens by profile"]
    if all(one["affinity"] is None for one in found.values()):
        rows = [one for one in rows if one[0] != "affinity kept"]
    title = f"{setup.workers} {setup.mode} worker{'s' if setup.workers != 1 else ''}"
    columns = (Column(""), *(Column(name, number=True) for name in found))
    print_tables(FittedTable(title, columns, rows))
