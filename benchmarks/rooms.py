"""Rooms, arrows and lines of the code: `python benchmarks/rooms.py [CHECKOUT]`.

A room is a sub-package or a module at the top level of `llmpp_core` or `llmpp_book`; an arrow says that one room imports another.
"""

import sys
from collections import Counter
from pathlib import Path

import grimp

LONGEST = 350


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main(root: Path) -> None:
    sys.path.insert(0, str(root))
    packages = [name for name in ("llmpp_core", "llmpp_book") if (root / name).is_dir()]
    graph = grimp.build_graph(*packages, cache_dir=None)
    modules = sorted(module for module in graph.modules if module not in packages)
    pairs = Counter((room(a), room(b)) for a in modules for b in graph.find_modules_directly_imported_by(a) if b not in packages)
    arrows = {pair for pair in pairs if pair[0] != pair[1]}
    circles = [(a, b) for a, b in arrows if a < b and (b, a) in arrows]
    files = {path: lines(path) for name in (*packages, "tests") for path in (root / name).rglob("*.py")}
    sizes: Counter[str] = Counter()
    for path, size in files.items():
        sizes[room(".".join(path.relative_to(root).with_suffix("").parts))] += size
    for name in sorted({room(module) for module in modules}):
        reached = sorted(b.partition(".")[2] for a, b in arrows if a == name)
        print(f"{sizes[name]:6,}  {name}  -> {', '.join(reached) or 'nothing'}")
    print(f"{len({room(m) for m in modules})} rooms, {len(arrows)} arrows between them, {len(circles)} pairs that import each other")
    for name in (*packages, "tests"):
        of = [size for path, size in files.items() if path.relative_to(root).parts[0] == name]
        print(f"{name}: {sum(of):,} lines in {len(of)} files")
    long = [str(path.relative_to(root)) for path, size in files.items() if size > LONGEST]
    print(f"files over {LONGEST} lines: {', '.join(long) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
