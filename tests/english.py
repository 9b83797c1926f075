"""English prose that every Python brings along: its own manual.

python tests/english.py build/english.txt
"""

import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

MARKUP = re.compile(r"[*`]|^\s*[-*=^~|+]+\s*$", re.MULTILINE)
SENTENCE = re.compile(r"[A-Z].*[.:]")


def documents() -> list[str]:
    """The prose of each of its topics."""
    return [text for topic in topics.values() if (text := "\n".join(_paragraphs(topic)))]


def _paragraphs(topic: str) -> list[str]:
    """Each on one line; no code, tables or grammar."""
    blocks = (block for block in topic.split("\n\n") if not block.startswith(" "))
    joined = (" ".join(MARKUP.sub("", block).split()) for block in blocks)
    return [block for block in joined if len(block) > 80 and SENTENCE.fullmatch(block)]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n\n".join(documents()) + "\n")
