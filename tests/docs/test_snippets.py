"""Every Python and shell snippet of README.md, docs/ and the runbook is run, against a stack of its own.

A snippet is run as it stands, in a folder with the files that it names; models and addresses become those of the test,
and the demo model becomes the sim.
A page marks what cannot be run here, with the reason: `<!-- not run: needs two GPUs -->` on the line above the block.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from docs.snippets import Snippet, find_snippets
from helpers import wait_until
from stack_processes import Stack
from stoker_ops.embedded import start
from stoker_workers.demo import demo_model_path
from workers.models import make_bert, make_classifier

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "ops" / "RUNBOOK.md", *sorted((ROOT / "docs").glob("*.md")))
SNIPPETS = [snippet for page in PAGES for snippet in find_snippets(ROOT, page) if snippet.language in ("python", "sh")]
RUN = [snippet for snippet in SNIPPETS if snippet.reason is None]

STAYS = re.compile(r"stoker (up|worker|scheduler|batch-worker|top(?!.* --count))\b")
"""Commands that run until they are told to stop."""
LOOKS = re.compile(r"stoker (config|dead list|doctor|explain|queue|stats|top|workers)\b")
"""Commands that change nothing: pages repeat them, and each is run once."""
SERVED_BY = {
    "client.embed": "stoker up --model /models/minilm",
    "client.classify": "stoker up --model /models/sentiment",
}
"""The command, of the page on encoders, that must serve a snippet that has this word, on a queue of its own."""
DEMO = re.compile(r'((?<=stoker up)(?!.*--model)|(?<=--model )demo|(?<=DistributedServingEngine\(")demo)')
"""Where a snippet has the demo model, by name or by default. Loading it takes seconds, and is tested elsewhere."""
EXAMPLES = sorted((ROOT / "workers" / "stoker_workers" / "examples").glob("*.py"))
SERVES = re.compile(r'^ready at|"event": "(serving|leading|supervising)"|^queue ', re.M)
ENDS_WITH = (0, 130, -signal.SIGINT)

RUN_PYTHON = """
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
result = eval(code, {"__name__": "snippet"})
if inspect.iscoroutine(result):
    asyncio.run(result)
"""

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A stack with the workers that snippets name, and a folder with the files that they name; on one server only."""
    with tempfile.TemporaryDirectory(prefix="stoker-t-", dir="/tmp") as short, start(short, ephemeral=True) as server:
        stack = Stack(server.url, tmp_path_factory.mktemp("logs"))
        try:
            desk = Desk(stack, tmp_path_factory.mktemp("desk"))
            desk.lay()
            yield desk
            desk.end()
        finally:
            stack.end()


class Desk:
    """Where snippets run."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.looked: set[str] = set()
        self._lasting = ExitStack()
        self._served: set[tuple[str, str]] = set()
        self.stands_for = {
            "/models/llama": str(demo_model_path()),
            "/models/minilm": str(make_bert(folder / "bert")),
            "/models/sentiment": str(make_classifier(folder / "classifier")),
            "redis://10.0.0.5:6379/0": stack.url,
        }

    def lay(self) -> None:
        """Start what serves, and write the files."""
        self.stack.scheduler()
        self.stack.worker("gpu0", "--profile", "zero")
        self.stack.worker("gpu1", "--profile", "zero")
        self.stack.batch_worker()
        with self.stack.client() as client:
            client.submit(request_id="ID", prompt="The with statement", max_tokens=4)
        (self.folder / "my_models.py").write_text(next(s.code for s in SNIPPETS if "class Shout" in s.code))
        program = self.folder / "bin" / "stoker"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nfrom stoker.cli import main\nmain(prog_name='stoker')\n")
        program.chmod(0o755)

    def fresh_files(self) -> None:
        """Write the files that snippets read, and remove what they wrote."""
        for written in (*self.folder.glob("*answers.jsonl"), *self.folder.glob("requests.*.jsonl")):
            written.unlink()
        lines = [json.dumps({"prompt": f"The {word} statement", "max_tokens": 4}) for word in ("with", "import")]
        (self.folder / "requests.jsonl").write_text("\n".join(lines))
        # Its beginning: what the commands do is the same, and they simulate it a dozen times.
        trace = (ROOT / "bench" / "data" / "trace.csv").read_text().splitlines(keepends=True)
        (self.folder / "trace.csv").write_text("".join(trace[:300]))
        for name, base_ms in (("h100", 7.0), ("l40s", 20.0)):
            prices = {"base_ms": base_ms, "prefill_ms": 0.032, "row_ms": 0.02, "resident_ms": 0.00005}
            (self.folder / f"{name}.json").write_text(json.dumps(prices))
        (self.folder / "prompts.txt").write_text("The with statement\nThe import statement\n")

    def environment(self, queue: str = "default") -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        here = {"PATH": path, "STOKER_REDIS_URL": self.stack.url, "STOKER_QUEUE": queue, "STOKER_METRICS": "0"}
        settings = os.environ | {"STOKER_HEARTBEAT_MS": str(self.stack.config.heartbeat_ms)} | here
        # What these many processes run is measured where their own tests run it.
        settings.pop("COVERAGE_PROCESS_CONFIG", None)
        return settings

    def mapped(self, code: str) -> str:
        for name, real in self.stands_for.items():
            code = code.replace(name, real)
        return DEMO.sub(lambda found: "sim" if found[0] else " --model sim", code)

    def run(self, command: list[str], queue: str = "default", given: str | None = None) -> str:
        """Run a command to its end and return what it printed; fails the test if it fails."""
        done = subprocess.run(
            command,
            input=given,
            env=self.environment(queue),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, line: str, queue: str) -> None:
        """Have a command serve this queue until the last snippet has run, unless it does so already."""
        if (line, queue) not in self._served:
            self._served.add((line, queue))
            self._lasting.enter_context(self.serving(line, queue))

    def has_served(self, line: str) -> bool:
        """Whether a command serves some queue already."""
        return any(line == other for other, _ in self._served)

    def end(self) -> None:
        """Stop what was served."""
        self._lasting.close()

    @contextmanager
    def serving(self, line: str, queue: str) -> Iterator[None]:
        """Run a command that stays until it serves, and then the block; stop it."""
        log = self.folder / f"{queue}-{line.split()[1]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                env=self.environment(queue),
                cwd=self.folder,
                stdout=out,
                stderr=out,
                # A run of the tests in the background is one without Ctrl-C, which its children would inherit.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        try:
            wait_until(lambda: SERVES.search(log.read_text()) or process.poll() is not None, 120, what=f"{line} serves")
            assert process.poll() is None, f"{line}\n{log.read_text()}"
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in ENDS_WITH, f"{line}\n{log.read_text()}"
        finally:
            process.kill()
            process.wait(10)


@pytest.mark.parametrize("snippet", [s for s in RUN if s.language == "python"], ids=str)
def test_a_python_snippet_runs_or_is_a_part_of_an_example(desk: Desk, snippet: Snippet) -> None:
    if any(plain(snippet.code) in plain(example.read_text()) for example in EXAMPLES):
        return
    desk.fresh_files()
    queue = "default"
    for word, line in SERVED_BY.items():
        if word in snippet.code:
            queue = word.replace(".", "-")
            desk.serve(desk.mapped(line), queue)
    desk.run([sys.executable, "-c", RUN_PYTHON, str(snippet)], queue, desk.mapped(snippet.code))


@pytest.mark.parametrize("snippet", [s for s in RUN if s.language == "sh"], ids=str)
def test_the_commands_of_a_shell_snippet_run(desk: Desk, snippet: Snippet) -> None:
    desk.fresh_files()
    for number, line in enumerate(shell_lines(desk.mapped(snippet.code))):
        if desk.has_served(line):
            continue
        if STAYS.match(line):
            # On a queue of its own: it may serve another model.
            with desk.serving(line, re.sub(r"\W", "-", f"{snippet}-{number}")):
                pass
        elif line not in desk.looked:
            desk.run(["bash", "-c", line])
            desk.looked |= {line} if LOOKS.match(line) else set()


def test_a_snippet_that_is_not_run_says_why() -> None:
    reasons = [snippet.reason for snippet in SNIPPETS if snippet.reason is not None]
    assert all(len(reason.split()) > 2 for reason in reasons)
    assert len(reasons) < len(SNIPPETS) / 2


def shell_lines(code: str) -> list[str]:
    """Return the commands: without comments, and with the lines that a backslash continues."""
    lines = [line.partition(" #")[0].strip() for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def plain(code: str) -> str:
    """Return the code without indentation, for an excerpt of a class stands at the margin."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())
