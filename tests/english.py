"""Write English text that every Python brings along, its own manual, as a file of plain text.

python tests/english.py build/english.txt
"""

import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

MARKUP = re.compile(r"[*`]|^\s*[-*=^~|+]+\s*$", re.MULTILINE)
SENTENCE = re.compile(r"[A-Z][^\n]*[.:]$", re.DOTALL)


def paragraphs(text: str) -> list[str]:
    """Its paragraphs of prose, each on one line: no code, tables or grammar."""
    blocks = (block for block in text.split("\n\n") if not block.startswith(" "))
    joined = (" ".join(MARKUP.sub("", block).split()) for block in blocks)
    return [block for block in joined if len(block) > 80 and SENTENCE.fullmatch(block)]


if __name__ == "__main__":
    documents = ("\n".join(paragraphs(text)) for text in topics.values())
    Path(sys.argv[1]).write_text("\n\n".join(filter(None, documents)) + "\n")
