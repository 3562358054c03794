"""What a user gets from the built wheel, apart from this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

ASK = """
import asyncio, json, stoker
from stoker import DistributedServingEngine, InferenceRequest

async def main():
    async with DistributedServingEngine("demo") as engine:
        request_id = await engine.submit_request(InferenceRequest(prompt="The with statement", max_tokens=8))
        response = await engine.get_response(request_id)
        print(json.dumps({"text": response.text, "from": stoker.__file__}))

asyncio.run(main())
"""


def test_the_wheel_installed_in_a_new_environment_answers_a_prompt(short_tmp: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        short_tmp,
        ROOT,
    ]
    subprocess.run(build, check=True, timeout=120)
    wheel = next(short_tmp.glob("stoker-*.whl"))
    home = short_tmp / "env"
    venv.create(home, symlinks=True, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, timeout=120)
    # Its dependencies are those of this environment, by their folder alone: what is editable here stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [home / "bin/python", "-c", ASK]
    run = subprocess.run(command, cwd=short_tmp, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["text"]
    assert answer["from"].startswith(str(home))
