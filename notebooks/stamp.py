"""Writes into the notebook where it is published, which pyproject.toml alone says: Repository, of project.urls.

python notebooks/stamp.py        # after that line has changed; without one the notebook asks for a wheel
"""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = Path("notebooks/autolora_colab.ipynb")
COLAB = "https://colab.research.google.com/"
BADGE = re.compile(r"^\[!\[Open in Colab\].*$", re.MULTILINE)
REPOSITORY = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)


def repository() -> str:
    """Where it is published; "" where that is not yet."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"].get("Repository", "")


def stamped(notebook: str, repository: str) -> str:
    """The notebook, a text of JSON, of a repository. Its badge opens it in Colab if it lies on GitHub, else Colab."""
    github = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)/?(?:\.git)?", repository)
    place = f"{COLAB}github/{github[1]}/blob/main/{NOTEBOOK.as_posix()}" if github else COLAB
    content = json.loads(notebook)
    for cell in content["cells"]:
        text = "".join(cell["source"])
        text = BADGE.sub(f"[![Open in Colab]({COLAB.rstrip('/')}/assets/colab-badge.svg)]({place})", text)
        text = REPOSITORY.sub(f'REPOSITORY = "{repository}"', text)
        cell["source"] = text.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    file = ROOT / NOTEBOOK
    file.write_text(stamped(file.read_text("utf-8"), repository()), "utf-8")
