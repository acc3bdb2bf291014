"""The command line: ``maskloom demo``, ``show``, ``explain``, ``bench`` and ``env``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from maskloom.demo import Demo
    from maskloom.masks.algebra import Mask

BAD_INPUT = 2

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


class Command(TyperCommand):
    """A command that refuses an option of one value that is given twice: the parser would keep the last, and say nothing."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """As typer does it; raise a BadParameter if such an option is given several times."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in self.get_params(ctx):
            times = sum(one is option for one in given)
            if times > 1 and isinstance(option, TyperOption) and not (option.multiple or option.is_flag):
                raise typer.BadParameter(f"it takes one value; got {times}", ctx=ctx, param=option)
        return super().parse_args(ctx, args)


@app.callback()
def maskloom() -> None:
    """Attention over batches that are not rectangles, on torch's FlexAttention."""


@app.command(cls=Command)
def demo(
    text: Annotated[
        Path | None,
        typer.Option(
            help="A text file, one sequence of words in each line. Default: the Zen of Python.", readable=False
        ),
    ] = None,
    heads: Annotated[int, typer.Option(help="Heads of the attention.")] = 8,
    dim: Annotated[int, typer.Option(help="Features of a word, a multiple of the heads.")] = 64,
    out: Annotated[Path, typer.Option(help="Directory for the two pictures.", readable=False)] = Path("maskloom-demo"),
    device: Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")] = "auto",
) -> None:
    """Take real sequences of unequal length to attention and its picture, and check every number on the way."""
    from maskloom import demo as job
    from maskloom.show.figures import load_matplotlib

    load_matplotlib()  # what is missing is said before anything is computed
    console = Console()

    @contextlib.contextmanager
    def progress(what: str) -> Iterator[None]:
        with console.status(what):
            yield

    try:
        found = job.run(text, heads=heads, dim=dim, out=out, device=device, progress=progress)
    except job.InputError as error:
        typer.echo(f"maskloom demo: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    console.print(_summary(found))
    worst = max(found.differences, key=lambda difference: difference.ours)
    if found.is_right:
        console.print(
            f"[green]Right:[/] output and {len(found.differences) - 1} gradients agree with the dense reference in "
            f"float64; the largest difference is {worst.ours:.1e} (of {worst.name}), "
            f"and the reference itself in {_dtype(found)} is off by {worst.plain:.1e}."
        )
        return
    for difference in found.differences:
        if not difference.is_right:
            console.print(
                f"[red]Wrong:[/] {difference.name} differs by {difference.ours:.1e} from the dense reference in float64"
                f" (the reference in {_dtype(found)}: {difference.plain:.1e})."
            )
    raise typer.Exit(1)


@app.command(cls=Command)
def show(
    expression: Annotated[str, typer.Argument(help="A mask: 'causal & window(back=127) | sinks(4)'.")],
    q: Annotated[
        int | None,
        typer.Option(help="Queries, in positions; by default as many as the mask's own tables say, else 32.", min=1),
    ] = None,
    kv: Annotated[int | None, typer.Option(help="Keys, in positions; as many as queries by default.", min=1)] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            help="The batch row to show: 1, or all. Or a mask of the batch, combined with &: lengths=5,3,9 (repeatable)."
        ),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(help="The batch row to show, or all; by default 0. The same as --batch with a number."),
    ] = None,
    head: Annotated[str, typer.Option(help="The head to show, or all.")] = "0",
    rows: Annotated[str | None, typer.Option(help="The queries to show: 0:64.")] = None,
    keys: Annotated[str | None, typer.Option(help="The keys to show: 0:64.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a .png, .svg or .pdf here instead of text.", readable=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page to explore here, a .html file, instead of text.", readable=False)
    ] = None,
) -> None:
    """Draw a mask in the terminal, as a picture, or as a page to explore."""
    from maskloom.show import command

    try:
        masks, chosen = command.batch_options(batch or [], row)
        asked = command.Asked(_parsed(expression, masks), q, kv, chosen, head, rows, keys)
        if out is None and html is None:
            for line in asked.in_text(Console()):
                typer.echo(line, color=True)
        if html is not None:
            typer.echo(asked.in_page(html))
        if out is not None:
            typer.echo(asked.in_file(out))
    except (TypeError, ValueError, OSError) as error:
        typer.echo(f"maskloom show: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def _parsed(expression: str, batch: list[str] | None) -> "Mask":
    from maskloom import and_masks, parse

    return and_masks(parse(expression), *(parse(_batch_mask(given)) for given in batch or ()))


def _batch_mask(given: str) -> str:
    """``lengths=5,3,9`` as the expression ``lengths([5,3,9])``."""
    name, equals, values = given.partition("=")
    if not equals:
        raise ValueError(f"--batch is a name and its values, such as lengths=5,3,9; got {given}")
    return f"{name}([{values}])"


@app.command(cls=Command)
def explain(
    expression: Annotated[str, typer.Argument(help="A mask: 'causal & window(back=127) | sinks(4)'.")],
    q: Annotated[int, typer.Option(help="Queries, in positions.", min=1)] = 4096,
    kv: Annotated[int | None, typer.Option(help="Keys, in positions; as many as queries by default.", min=1)] = None,
    block_size: Annotated[int, typer.Option(help="Positions in a tile.", min=1)] = 128,
    batch: Annotated[
        list[str] | None,
        typer.Option(help="A mask of the batch, to be combined with &: lengths=5,3,9 (repeatable)."),
    ] = None,
) -> None:
    """Say what the block mask of a mask costs, what of the mask costs what, and how its tiles were decided."""
    from maskloom import block_mask
    from maskloom.blocks import explain_block_mask, summary
    from maskloom.masks import simplify
    from maskloom.masks.simplify import describe
    from maskloom.show.measure.operand_costs import in_words, operand_costs

    try:
        mask = _parsed(expression, batch)
        keys = q if kv is None else kv
        typer.echo(summary(block_mask(mask, q, keys, block_size=block_size)))
        typer.echo(explain_block_mask(mask, q, keys, block_size=block_size))
        costs = operand_costs(mask, q, keys, block_size=block_size)
        if costs:
            typer.echo(in_words(costs))
        simple = simplify(mask)
        if simple != mask:
            typer.echo(f"simpler, and equal: {describe(simple)}")
    except (TypeError, ValueError) as error:
        typer.echo(f"maskloom explain: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None


_NO_BENCHMARKS = (
    "rows",
    "clocks",
    "attention_cases",
    "attention_contenders",
    "blocks_contenders",
)  # modules that benchmarks share


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which: blocks, attention, compile, exactness, ...")],
) -> None:
    """Run a benchmark of this checkout, with its own options after the name."""
    import runpy
    import sys

    folder = Path("benchmarks")
    script = folder / f"{name}.py"
    if not name.isidentifier() or not script.is_file():
        there = sorted(path.stem for path in folder.glob("*.py") if path.stem not in _NO_BENCHMARKS)
        hint = f"there are {', '.join(there)}" if there else "run it in a checkout of maskloom, where benchmarks/ is"
        typer.echo(f"maskloom bench: there is no benchmark {name!r} here; {hint}", err=True)
        raise typer.Exit(BAD_INPUT)
    sys.path.insert(0, str(folder))
    sys.argv = [str(script), *context.args]
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def env() -> None:
    """Print what maskloom runs on: versions, devices, backends; for a report of a problem."""
    import importlib.util
    import platform

    import torch

    import maskloom

    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    found = {
        "maskloom": maskloom.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpus": ", ".join(gpus) or "none",
        "triton": "found" if importlib.util.find_spec("triton") else "not found",
        "flash-attn-4": "found" if importlib.util.find_spec("flash_attn") else "not found",
    }
    for name, value in found.items():
        typer.echo(f"{name:<13} {value}")


def _summary(found: "Demo") -> Table:
    lengths = [len(words) for words in found.batch.words]
    batch, length, dim = found.batch.x.shape
    skipped, partial, full = found.explanation.skipped, found.explanation.partial, found.explanation.full
    q_block, kv_block = found.blocks.BLOCK_SIZE
    rows = {
        "sequences": f"{len(lengths)} of {min(lengths)} to {max(lengths)} words, {sum(lengths)} words in all",
        "batch": f"{batch} × {length} × {dim}, {_dtype(found)}, on {found.batch.x.device}",
        "padding": f"{found.batch.pads.float().mean():.0%} of all positions",
        "mask": repr(found.mask),
        "tiles": f"{skipped} skipped, {partial} partial, {full} full, of {q_block} × {kv_block} positions",
        "kernel": f"{found.explanation.backend}: {found.explanation.reason}",
        "times": ", ".join(f"{name} {_duration(seconds)}" for name, seconds in found.seconds.items()),
        "pictures": "\n".join(map(str, found.pictures)),
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _dtype(found: "Demo") -> str:
    return str(found.batch.x.dtype).removeprefix("torch.")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
