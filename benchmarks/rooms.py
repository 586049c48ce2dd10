"""Rooms, arrows and lines of the code: `python benchmarks/rooms.py [CHECKOUT]`.

A room is a sub-package or a module at the top level of `llmpp_core` or `llmpp_book`; an arrow says that one room imports another. Fails
where there is more of something than `[tool.rooms]` in pyproject.toml allows.
"""

import sys
import tomllib
from collections import Counter
from pathlib import Path

import grimp


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main(root: Path) -> int:
    most = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {}).get("rooms", {})
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
    counts = {"rooms": len({room(m) for m in modules}), "circles": len(circles)}
    print(f"{counts['rooms']} rooms, {len(arrows)} arrows between them, {len(circles)} pairs that import each other")
    for name in (*packages, "tests"):
        of = [size for path, size in files.items() if path.relative_to(root).parts[0] == name]
        counts[name] = sum(of)
        print(f"{name}: {counts[name]:,} lines in {len(of)} files")
    longest, counts["file"] = max(files.items(), key=lambda item: item[1])
    print(f"the longest file: {longest.relative_to(root)}, {counts['file']} lines")
    over = [f"{name}: {counts[name]:,}, at most {limit:,} allowed" for name, limit in most.items() if counts.get(name, 0) > limit]
    print("\n".join(over), file=sys.stderr, end="\n" * bool(over))
    return bool(over)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()))
