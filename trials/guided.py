"""Fuzzes one target under atheris, which follows the code that each input reaches.

    pip install atheris
    python trials/guided.py TARGET [--runs N] [--seconds S] [--corpus FOLDER]

Prints one line of JSON. An input that breaks a promise stays in the corpus folder as crash-..., and the run fails.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LONGEST = 4096
SLOWEST_S = 20
"""Seconds for one input: a target that takes them is a finding."""
MEMORY_MB = 4096


def inside(target: str, flags: list[str]) -> None:
    """The process that libFuzzer takes over."""
    import atheris

    with atheris.instrument_imports(include=["qwen3guard_client", "qwen3guard_export", "qwen3guard_runtime"]):
        from support import fuzz_targets
    atheris.Setup([sys.argv[0], *flags], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


def run(target: str, runs: int, seconds: int, corpus: Path) -> int:
    """Fuzzes `target` until either is reached (0: no bound), prints the figures, returns the process's status."""
    from support import fuzz_targets

    dictionary = corpus / "words.txt"
    for number, seed in enumerate(fuzz_targets.seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzz_targets.words(target) if len(word) <= 64))
    command = [sys.executable, __file__, target, "--inside", str(corpus), f"-dict={dictionary}", f"-max_len={LONGEST}"]
    command += [f"-artifact_prefix={corpus}/", f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MEMORY_MB}"]
    command += ["-print_final_stats=1", "-seed=1"] + ([f"-runs={runs}"] if runs else [])
    command += [f"-max_total_time={seconds}"] if seconds else []
    began = time.monotonic()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
    executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    figures = {
        "target": target,
        "executions": int(executed[1]) if executed else None,
        "seconds": round(time.monotonic() - began, 1),
        "corpus": sum(not each.name.startswith(("crash-", "timeout-", "oom-", "words")) for each in corpus.iterdir()),
        "edges": int(covered[-1]) if covered else None,
        "status": done.returncode,
    }
    print(json.dumps(figures))
    return done.returncode


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> int:
    if "--inside" in sys.argv:
        at = sys.argv.index("--inside")
        inside(sys.argv[1], sys.argv[at + 1 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        corpus = given.corpus or Path(temporary)
        corpus.mkdir(parents=True, exist_ok=True)
        return run(given.target, given.runs, given.seconds, corpus)


if __name__ == "__main__":
    sys.exit(main())
